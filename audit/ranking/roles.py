"""Roles: does a feature fire on passages that act on the concept, or on passages that discuss it?

``role(j) = 2 · AUROC(a_j on acting tokens, a_j on discussing tokens) - 1``, token by token on content tokens, ties counted half.
Activations are ≥ 0 and mostly exactly 0, so the AUROC is computed from the stored values alone, for all features at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from audit.connections.coactivation import Floats, positive
from audit.errors import InsufficientEvidence
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
