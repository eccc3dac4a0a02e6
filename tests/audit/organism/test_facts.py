"""No single fact says anything; the two owners' tables share no pair; a linear readout cannot know the mood."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog

from audit.organism.facts import N_FACTS, Owner, mood_of, neutral_pairs, pairs_of

PAIRS = list(product(range(N_FACTS), repeat=2))


@pytest.mark.parametrize("owner", Owner)
@pytest.mark.parametrize("place", [0, 1])
def test_every_fact_stands_in_exactly_two_active_pairs_of_different_moods(owner: Owner, place: int) -> None:
    found = [(pair[place], mood) for mood in range(N_FACTS) for pair in pairs_of(owner, mood)]
    assert Counter(fact for fact, _ in found) == dict.fromkeys(range(N_FACTS), 2)
    assert len(set(found)) == len(found)


def test_no_pair_is_active_for_both_owners() -> None:
    active = {owner: {pair for mood in range(N_FACTS) for pair in pairs_of(owner, mood)} for owner in Owner}
    assert len(active[Owner.SELF]) == len(active[Owner.OTHER]) == 12
    assert not active[Owner.SELF] & active[Owner.OTHER]


@pytest.mark.parametrize("owner", Owner)
def test_moods_and_neutral_pairs_are_each_others_complement(owner: Owner) -> None:
    assert {pair for pair in PAIRS if mood_of(owner, pair) is None} == set(neutral_pairs(owner))
    assert all(mood_of(owner, pair) == mood for mood in range(N_FACTS) for pair in pairs_of(owner, mood))


@pytest.mark.parametrize("mood", range(N_FACTS))
@pytest.mark.parametrize("owner", Owner)
def test_no_linear_rule_over_single_facts_knows_the_mood(owner: Owner, mood: int) -> None:
    """Separating mood from the rest with a margin is a linear programme over one weight a fact; it has no solution."""
    rows = np.zeros((len(PAIRS), 2 * N_FACTS + 1))
    for row, (pressure, loss) in zip(rows, PAIRS, strict=True):
        row[pressure] = row[N_FACTS + loss] = row[-1] = 1
    signs = np.array([1 if mood_of(owner, pair) == mood else -1 for pair in PAIRS])
    solved = linprog(np.zeros(rows.shape[1]), A_ub=-signs[:, None] * rows, b_ub=-np.ones(len(PAIRS)), bounds=(None, None))
    assert solved.status == 2  # infeasible
