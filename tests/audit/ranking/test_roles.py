"""Roles against the pairwise definition of the AUROC."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from audit.errors import InsufficientEvidence
from audit.ranking.roles import auroc, resampled_roles, side, target_roles
from audit.records import FeatureId
from audit.subject.activations import TokenActivations

LEVELS = st.sampled_from([0.0, 0.0, 0.0, 0.25, 0.5, 1.0, 3.0])
"""Few levels, so that ties between non-zero values are common."""


def tokens(*layers: np.ndarray) -> TokenActivations:
    """Activations of one made document."""
    n = len(layers[0])
    return TokenActivations(
        token_ids=np.arange(n, dtype=np.int32),
        document=np.zeros(n, np.int32),
        position=np.arange(n, dtype=np.int32),
        layers=tuple(sparse.csr_matrix(layer.astype(np.float32)) for layer in layers),
        sigma=np.ones((n, len(layers)), np.float32),
    )


@given(st.integers(1, 4), st.data())
def test_auroc_counts_pairs(width: int, data: st.DataObject) -> None:
    first = data.draw(hnp.arrays(np.float64, (data.draw(st.integers(1, 7)), width), elements=LEVELS))
    second = data.draw(hnp.arrays(np.float64, (data.draw(st.integers(1, 7)), width), elements=LEVELS))
    found = auroc(sparse.csr_matrix(first), sparse.csr_matrix(second))
    for j in range(width):
        pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in first[:, j] for b in second[:, j]]
        assert found[j] == pytest.approx(np.mean(pairs), abs=1e-12)


def test_role_is_plus_one_for_acting_only_and_minus_one_for_discussing_only() -> None:
    on, off = np.ones((3, 1)), np.zeros((3, 1))
    acting, discussing = tokens(np.hstack([on, off, on, off])), tokens(np.hstack([off, on, on, off]))
    features = [FeatureId("clt", 0, j) for j in range(4)]
    found = target_roles(features, acting, discussing)
    assert [found[feature].role for feature in features] == [1.0, -1.0, 0.0, None]
    assert [(found[f].n_acting_tokens, found[f].n_discussing_tokens) for f in features] == [(3, 0), (0, 3), (3, 3), (0, 0)]


@given(st.integers(0, 2**32 - 1))
def test_swapping_the_sets_flips_the_sign_and_layers_do_not_mix(seed: int) -> None:
    rng = np.random.default_rng(seed)
    acting, discussing = (tokens(*(np.maximum(rng.normal(size=(n, 3)), 0) for _ in range(2))) for n in (6, 9))
    features = [FeatureId("clt", 1, 2), FeatureId("clt", 0, 0), FeatureId("clt", 1, 0)]
    forward, back = target_roles(features, acting, discussing), target_roles(features, discussing, acting)
    alone = target_roles([features[0]], acting, discussing)
    assert forward[features[0]] == alone[features[0]]
    for feature in features:
        there, here = forward[feature].role, back[feature].role
        assert (there is None) == (here is None)
        if there is not None and here is not None:
            assert there == pytest.approx(-here, abs=1e-12)


def test_an_empty_set_is_no_evidence() -> None:
    with pytest.raises(InsufficientEvidence, match="discussing passages"):
        target_roles([FeatureId("clt", 0, 0)], tokens(np.ones((2, 1))), tokens(np.ones((0, 1))))


@given(st.integers(0, 2**32 - 1))
def test_resampled_roles_are_the_roles_of_the_passages_drawn(seed: int) -> None:
    """Against roles computed anew from the tokens of the drawn passages, each as often as it was drawn."""
    rng = np.random.default_rng(seed)
    made = [tokens(rng.choice([0.0, 0.0, 0.0, 0.5, 1.0, 2.0], size=(n, 2)).astype(float)) for n in (11, 14)]
    sets = [replace(each, document=np.sort(rng.choice([0, 2, 3, 7], each.n_tokens)).astype(np.int32)) for each in made]
    sides = [side(each, 5, (seed, n)) for n, each in enumerate(sets)]
    feature = FeatureId("clt", 0, 1)
    for number, found in enumerate(resampled_roles(feature, *sides)):
        drawn = []
        for each, half in zip(sets, sides, strict=True):
            documents = np.unique(each.document)
            rows = [np.flatnonzero(each.document == documents[k]) for k, times in enumerate(half.drawn[number]) for _ in range(int(times))]
            drawn.append(tokens(each.layers[0].toarray()[np.concatenate(rows)]))
        role = target_roles([feature], *drawn)[feature].role
        assert np.isnan(found) if role is None else found == pytest.approx(role, abs=1e-12)


def test_twelve_candidates_with_thirty_two_targets_are_resampled_within_a_second() -> None:
    rng = np.random.default_rng(0)
    made = [tokens(rng.gamma(2, 1, (600, 400)) * (rng.random((600, 400)) < 0.2)) for _ in range(2)]
    sets = [replace(each, document=(np.arange(600) // 30).astype(np.int32)) for each in made]
    sides = [side(each, 200, (0, n)) for n, each in enumerate(sets)]
    began = time.process_time()
    for index in range(12 * 32):
        assert resampled_roles(FeatureId("clt", 0, index), *sides).shape == (200,)
    assert time.process_time() - began < 1
