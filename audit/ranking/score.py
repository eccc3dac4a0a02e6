"""The acting score: do a candidate's downstream targets act or discuss, weighted by how strongly it feeds them?

``sum_j TWERA_ij · role(j) / sum_j |TWERA_ij|`` over the targets that have a role, in [-1, 1]. Its interval is a percentile bootstrap over
corpus shards and contrast passages at once: TWERA is recomputed from the resampled shards' sums for the chosen targets, and the roles from
the resampled passages (``roles.RoleDraws``). Which targets are chosen stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audit.connections.coactivation import Floats
from audit.records import Interval

LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One candidate's acting score."""

    value: float | None
    """None when no target has both a role and a weight."""
    role_mass: float
    """Share of |TWERA| whose target had a role; 0 when there is no weight at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSums:
    """TWERA of K targets, taken apart by corpus shard."""

    weighted: Floats
    """(n_shards, K): sum of a_j · a_i / sigma."""
    target_sum: Floats
    """(n_shards, K): sum of a_j."""
    virtual: Floats
    """(K,): virtual weights."""


def acting_score(twera: Floats, role: Floats) -> Score:
    """Score of one candidate.

    Args:
        twera: (K,) weights on the chosen targets.
        role: (K,) roles, NaN where a target has none.
    """
    mass, known = np.abs(twera), ~np.isnan(role)
    with_role = float(mass[known].sum())
    if with_role == 0:
        return Score(value=None, role_mass=0.0)
    return Score(value=float(twera[known] @ role[known]) / with_role, role_mass=with_role / float(mass.sum()))


def resample(n_parts: int, resamples: int, seed: int | Sequence[int]) -> Floats:
    """How often each shard or passage is drawn in each resample: (resamples, n_parts), every row summing to ``n_parts``."""
    drawn = np.random.default_rng(seed).multinomial(n_parts, np.full(n_parts, 1 / n_parts), size=resamples)
    return drawn.astype(np.float64)


def bootstrap(sums: ShardSums, role: Floats, drawn: Floats) -> Interval | None:
    """95 % percentile interval of the acting score over resamples.

    Args:
        sums: of the chosen targets.
        role: (resamples, K) roles in each resample, or (K,) when they are the same in all; NaN where a target has none.
        drawn: (resamples, n_shards) from ``resample``.

    Returns:
        None with fewer than two shards, or when no resample has any weight on a target with a role.
    """
    if drawn.shape[1] < 2:
        return None
    denominator = drawn @ sums.target_sum
    expected = np.divide(drawn @ sums.weighted, denominator, out=np.zeros_like(denominator), where=denominator > 0)
    twera = np.where(np.isnan(role), 0.0, expected * sums.virtual)  # (resamples, K); a target without a role weighs nothing
    mass = np.abs(twera).sum(axis=1)
    if not (mass > 0).any():
        return None
    scores = (twera * np.nan_to_num(role)).sum(axis=1)[mass > 0] / mass[mass > 0]
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(low=float(low), high=float(high))
