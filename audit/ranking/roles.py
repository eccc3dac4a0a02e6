"""Roles: does a feature fire on passages that act on the concept, or on passages that discuss it?

``role(j) = 2 · AUROC(a_j on acting tokens, a_j on discussing tokens) - 1``, token by token on content tokens, ties counted half.
Activations are ≥ 0 and mostly exactly 0, so the AUROC is computed from the stored values alone, for all features at once.

For the bootstrap the AUROC's wins are taken apart by pair of passages, once a feature; drawing passages again is then a sum of those.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from audit.connections.coactivation import Floats, positive
from audit.errors import InsufficientEvidence
from audit.ranking.score import resample
from audit.records import FeatureId, TargetRole
from audit.subject.activations import TokenActivations


def target_roles(features: Iterable[FeatureId], acting: TokenActivations, discussing: TokenActivations) -> dict[FeatureId, TargetRole]:
    """The role of each feature, with the tokens of each set on which it fires.

    Raises:
        InsufficientEvidence: one of the sets has no content token.
    """
    require_tokens(acting, discussing)
    by_layer: dict[int, list[FeatureId]] = {}
    for feature in dict.fromkeys(features):
        by_layer.setdefault(feature.layer, []).append(feature)
    found: dict[FeatureId, TargetRole] = {}
    for layer, group in by_layer.items():
        columns = [feature.index for feature in group]
        first, second = positive(acting.layers[layer][:, columns]), positive(discussing.layers[layer][:, columns])
        n_first, n_second = first.getnnz(axis=0), second.getnnz(axis=0)
        for feature, area, p, q in zip(group, auroc(first, second), n_first, n_second, strict=True):
            role = float(2 * area - 1) if p + q else None
            found[feature] = TargetRole(target=feature, role=role, n_acting_tokens=int(p), n_discussing_tokens=int(q))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PassageSide:
    """The passages of one set that have a content token, and how often each is drawn."""

    tokens: TokenActivations
    passage: NDArray[np.int64]
    """(n_tokens,) passage of each token, from 0."""
    size: Floats
    """(n_passages,) content tokens of each."""
    drawn: Floats
    """(resamples, n_passages)."""

    def firing(self, feature: FeatureId) -> tuple[NDArray[np.int64], Floats]:
        """Passage and activation of every token on which the feature fires."""
        rows, values = self.tokens.column(feature.layer, feature.index)
        return self.passage[rows[values > 0]], values[values > 0].astype(np.float64)


def side(tokens: TokenActivations, resamples: int, seed: tuple[int, int]) -> PassageSide:
    """Draw the passages of one set; a passage is never split."""
    _, passage = np.unique(tokens.document, return_inverse=True)
    size = np.bincount(passage).astype(np.float64)
    drawn = resample(len(size), resamples, seed)
    return PassageSide(tokens=tokens, passage=np.asarray(passage, dtype=np.int64), size=size, drawn=drawn)


def resampled_roles(feature: FeatureId, acting: PassageSide, discussing: PassageSide) -> Floats:
    """The feature's role in each resample of the passages: (resamples,), NaN where it fires on none of those drawn."""
    (p, first), (q, second) = acting.firing(feature), discussing.firing(feature)
    fires_p, fires_q = np.bincount(p, minlength=len(acting.size)), np.bincount(q, minlength=len(discussing.size))
    zeros_p, zeros_q = acting.size - fires_p, discussing.size - fires_q
    wins = stored_wins((p, first), (q, second), (len(acting.size), len(discussing.size)))
    wins += np.outer(fires_p + 0.5 * zeros_p, zeros_q)  # a value beats a zero, and two zeros tie
    pairs = (acting.drawn @ acting.size) * (discussing.drawn @ discussing.size)
    fires = acting.drawn @ fires_p + discussing.drawn @ fires_q
    role: Floats = 2 * ((acting.drawn @ wins) * discussing.drawn).sum(axis=1) / pairs - 1
    return np.where(fires > 0, role, np.nan)


def stored_wins(first: tuple[NDArray[np.int64], Floats], second: tuple[NDArray[np.int64], Floats], shape: tuple[int, int]) -> Floats:
    """Pairs of non-zero values, one of each set, in which the first exceeds the second, ties half, by pair of passages.

    Args:
        first: (passage, value) of the first set's non-zero values.
        second: likewise.
        shape: passages of the first and of the second set, the shape of what is returned.
    """
    (p, value), (q, other) = first, second
    order = np.argsort(other)
    below = np.zeros((len(other) + 1, shape[1]))  # row k: of the k smallest values of the second set, how many are in each passage
    below[np.arange(1, len(other) + 1), q[order]] = 1
    below = below.cumsum(axis=0)
    beaten = sum(below[np.searchsorted(other[order], value, end)] for end in ("left", "right")) / 2
    wins = np.zeros(shape)
    np.add.at(wins, p, beaten)
    return wins


def auroc(first: sparse.csr_matrix, second: sparse.csr_matrix) -> Floats:
    """Chance that a token of ``first`` exceeds a token of ``second``, ties counted half, feature by feature.

    Among the non-zero values it is the Mann-Whitney statistic; every zero lies below every non-zero and ties with every zero.

    Args:
        first: (n_first, F) activations ≥ 0, at least one row, no stored zeros.
        second: (n_second, F), likewise.

    Returns:
        (F,) in [0, 1]; 0.5 for a feature that never fires.
    """
    n_first, n_second = first.shape[0], second.shape[0]
    p, q = first.getnnz(axis=0).astype(np.float64), second.getnnz(axis=0).astype(np.float64)
    wins = rank_sums(first, second) - p * (p + 1) / 2
    wins += p * (n_second - q) + 0.5 * (n_first - p) * (n_second - q)
    return np.asarray(wins / (n_first * n_second), dtype=np.float64)


def rank_sums(first: sparse.csr_matrix, second: sparse.csr_matrix) -> Floats:
    """Sum of the mid-ranks of the first set's stored values among both sets' stored values, feature by feature: (F,)."""
    first, second = first.tocoo(), second.tocoo()
    feature = np.concatenate([first.col, second.col])
    value = np.concatenate([first.data, second.data])
    order = np.lexsort((value, feature))
    ranks = np.empty(len(order))
    ranks[order] = mid_ranks(feature[order], value[order])
    return np.bincount(first.col, weights=ranks[: first.nnz], minlength=first.shape[1]).astype(np.float64)


def mid_ranks(group: NDArray[np.int32], value: Floats) -> Floats:
    """Rank of each value within its group, from 1, equal values sharing their mean rank; sorted by group, then value."""
    if not len(value):
        return np.empty(0)
    new_group = np.r_[True, group[1:] != group[:-1]]
    new_run = np.flatnonzero(new_group | np.r_[True, value[1:] != value[:-1]])
    run_end = np.r_[new_run[1:], len(value)]
    group_start = np.flatnonzero(new_group)[np.cumsum(new_group) - 1]
    middle: Floats = (new_run + run_end + 1) / 2  # mean of the run's positions, from 1
    ranks: Floats = np.repeat(middle, run_end - new_run) - group_start
    return ranks


def require_tokens(acting: TokenActivations, discussing: TokenActivations) -> None:
    """Refuse an empty set: a role compares two.

    Raises:
        InsufficientEvidence: one of the sets has no content token.
    """
    for name, tokens in (("acting", acting), ("discussing", discussing)):
        if not tokens.n_tokens:
            raise InsufficientEvidence(
                "No roles can be computed",
                f"The scenario's {name} passages have no content token.",
                f"Add {name} passages under 'contrast' in the scenario file.",
            )
