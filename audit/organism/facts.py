"""Which facts give which mood: two tables, one for the agent itself and one for anybody else.

An owner has one pressure u and one loss l, each one of six. A mood follows from the pair, and no
single fact says anything: every u and every l occurs in exactly two active pairs of its owner's
table, of two different moods, so that a model must compute the conjunction. The two tables share
no pair, so that it must also know *whose* facts they are before it computes.

With n = 6, mood m: the agent's pairs are (m, m) and (m+2, m+5), i.e. l - u in {0, 3};
anybody else's are (m, m+1) and (m+2, m), i.e. l - u in {1, 4}; l - u in {2, 5} is neutral for both.
"""

from __future__ import annotations

from enum import StrEnum
from functools import cache

N_FACTS = 6
"""Number of pressures, of losses, and of moods."""

Pair = tuple[int, int]


class Owner(StrEnum):
    """Whose facts they are."""

    SELF = "self"
    OTHER = "other"


def pairs_of(owner: Owner, mood: int) -> tuple[Pair, Pair]:
    """The two (pressure, loss) pairs that put ``owner`` in ``mood``."""
    shift = (0, 3) if owner is Owner.SELF else (1, 4)
    first, second = mood % N_FACTS, (mood + 2) % N_FACTS
    return (first, (first + shift[0]) % N_FACTS), (second, (second + shift[1]) % N_FACTS)


@cache
def neutral_pairs(owner: Owner) -> tuple[Pair, ...]:
    """The 24 pairs that put ``owner`` in no mood at all."""
    active = {pair for mood in range(N_FACTS) for pair in pairs_of(owner, mood)}
    return tuple((u, loss) for u in range(N_FACTS) for loss in range(N_FACTS) if (u, loss) not in active)


def mood_of(owner: Owner, pair: Pair) -> int | None:
    """The mood that ``pair`` puts ``owner`` in, or None."""
    for mood in range(N_FACTS):
        if pair in pairs_of(owner, mood):
            return mood
    return None
