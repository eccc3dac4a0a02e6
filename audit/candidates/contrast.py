"""The search for features that fire more on a concept's passages than on other text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from audit.records import FeatureId
from audit.subject.activations import TokenActivations


def by_contrast(kind: str, other: Sequence[TokenActivations], passages: Sequence[TokenActivations]) -> list[FeatureId]:
    """Features by standardised mean difference, largest first; those that fire no more than on other text are left out.

    Args:
        kind: of the dictionary.
        other: sets of other text, pooled.
        passages: sets of passages on the concept; they are pooled, so that both those that act and those that discuss count.
    """
    scored = []
    for layer in range(len(other[0].layers)):
        scores = differences(other, passages, layer)
        scored += [(-float(scores[index]), FeatureId(kind, layer, int(index))) for index in np.flatnonzero(scores > 0)]
    return [feature for _, feature in sorted(scored)]


def differences(other: Sequence[TokenActivations], passages: Sequence[TokenActivations], layer: int) -> NDArray[np.float64]:
    """Standardised mean difference a feature, (n_features,): (m₁ − m₀) / sqrt((v₀ + v₁) / 2), over tokens; 0 where it never fires."""
    m0, v0 = _moments(other, layer)
    m1, v1 = _moments(passages, layer)
    spread = np.sqrt((v0 + v1) / 2)
    result: NDArray[np.float64] = np.divide(m1 - m0, spread, out=np.zeros_like(m0), where=spread > 0)
    return result


def _moments(sets: Sequence[TokenActivations], layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    n_features = sets[0].layers[layer].shape[1]
    total, square = np.zeros(n_features), np.zeros(n_features)
    n_tokens = max(sum(one.n_tokens for one in sets), 1)
    for one in sets:
        matrix, values = one.layers[layer], one.layers[layer].data.astype(np.float64)
        total += np.bincount(matrix.indices, weights=values, minlength=n_features)
        square += np.bincount(matrix.indices, weights=values * values, minlength=n_features)
    mean = total / n_tokens
    return mean, np.maximum(square / n_tokens - mean * mean, 0.0)
