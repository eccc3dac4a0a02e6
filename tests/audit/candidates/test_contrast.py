"""The contrast search equals its formula on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest

from audit.candidates.contrast import by_contrast, differences


def test_differences_by_hand(observed, contrast):
    acting, discussing = contrast
    for layer in range(3):
        text = observed.layers[layer].toarray().astype(np.float64)
        concept = np.concatenate([one.layers[layer].toarray() for one in contrast]).astype(np.float64)
        spread = np.sqrt((text.var(0) + concept.var(0)) / 2)
        expected = np.divide(concept.mean(0) - text.mean(0), spread, out=np.zeros(24), where=spread > 0)
        assert differences((observed,), (acting, discussing), layer) == pytest.approx(expected, abs=1e-6)


def test_text_against_itself_finds_nothing(observed):
    assert all(differences((observed,), (observed,), layer) == pytest.approx(np.zeros(24), abs=1e-9) for layer in range(3))
    assert by_contrast("clt", (observed,), (observed,)) == []


def test_the_order_of_the_sets_does_not_matter(observed, contrast):
    assert by_contrast("clt", (observed,), contrast) == by_contrast("clt", (observed,), contrast[::-1])


def test_best_first(observed, contrast):
    scores = [differences((observed,), contrast, feature.layer)[feature.index] for feature in by_contrast("clt", (observed,), contrast)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


def test_other_text_is_pooled(observed, contrast):
    acting, discussing = contrast
    pooled = np.concatenate([one.layers[1].toarray() for one in (observed, acting)]).astype(np.float64)
    concept = discussing.layers[1].toarray().astype(np.float64)
    spread = np.sqrt((pooled.var(0) + concept.var(0)) / 2)
    expected = np.divide(concept.mean(0) - pooled.mean(0), spread, out=np.zeros(24), where=spread > 0)
    assert differences((observed, acting), (discussing,), 1) == pytest.approx(expected, abs=1e-6)
