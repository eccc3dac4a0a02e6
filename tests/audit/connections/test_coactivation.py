"""The sums over tokens equal a double loop that reads like their definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from audit.connections import coactivation
from audit.subject import Subject, observe


@st.composite
def activations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(T, S) sources, (T, F) targets, (T,) norm denominators or None."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_tokens, n_sources, n_targets = draw(st.integers(1, 30)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))

    def layer(width: int) -> np.ndarray:
        values = rng.gamma(1.0, 2.0, (n_tokens, width)) * (rng.random((n_tokens, width)) < density)
        return values.astype(np.float32)

    sigma = rng.uniform(0.3, 3.0, n_tokens).astype(np.float32) if draw(st.booleans()) else None
    return layer(n_sources), layer(n_targets), sigma


@given(activations())
def test_sums_equal_a_double_loop_over_tokens(made: tuple[np.ndarray, np.ndarray, np.ndarray | None]) -> None:
    source, target, sigma = made
    found = coactivation.sums(sparse.csr_matrix(source), sparse.csr_matrix(target), sigma)
    for i in range(source.shape[1]):
        for j in range(target.shape[1]):
            weighted = gated = 0.0
            n_coactive = 0
            for t in range(len(source)):
                flow = float(source[t, i]) / (1.0 if sigma is None else float(sigma[t]))
                weighted += float(target[t, j]) * flow
                gated += flow if target[t, j] > 0 else 0.0
                n_coactive += bool(source[t, i] > 0 and target[t, j] > 0)
            assert found.weighted[i, j] == pytest.approx(weighted, rel=1e-9)
            assert found.gated[i, j] == pytest.approx(gated, rel=1e-9)
            assert found.n_coactive[i, j] == n_coactive
    np.testing.assert_allclose(found.target_sum, target.astype(np.float64).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.n_firing, (target > 0).sum(axis=0))
    assert found.n_tokens == len(source)


@given(activations(), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_shard_sums_add_up_to_the_whole(made: tuple[np.ndarray, np.ndarray, np.ndarray | None], n_shards: int, seed: int) -> None:
    source, target, sigma = made
    shard = coactivation.shards(np.random.default_rng(seed).integers(0, 5, len(source)).astype(np.int32), n_shards)
    whole = coactivation.sums(sparse.csr_matrix(source), sparse.csr_matrix(target), sigma)
    weighted, target_sum = coactivation.shard_sums(sparse.csr_matrix(source[:, :1]), sparse.csr_matrix(target), sigma, shard)
    np.testing.assert_allclose(weighted.sum(axis=0), whole.weighted[0], rtol=1e-9)
    np.testing.assert_allclose(target_sum.sum(axis=0), whole.target_sum, rtol=1e-9)
    for r in range(len(weighted)):
        part = coactivation.sums(
            sparse.csr_matrix(source[shard == r]), sparse.csr_matrix(target[shard == r]), None if sigma is None else sigma[shard == r]
        )
        np.testing.assert_allclose(weighted[r], part.weighted[0], rtol=1e-9)


def test_stored_zeros_do_not_count_as_firing() -> None:
    stored_zero = sparse.csr_matrix((np.array([0.0, 2.0], np.float32), ([0, 1], [0, 0])), shape=(2, 1))
    found = coactivation.sums(stored_zero, stored_zero)
    assert found.n_coactive.tolist() == [[1]]
    assert found.n_firing.tolist() == [1]


def test_small_products_survive_a_long_sum() -> None:
    """In float32 the sum of many small products beside a large one would stand still."""
    values = np.full((100_001, 1), 1e-2, np.float32)
    values[0] = 4096.0
    matrix = sparse.csr_matrix(values)
    expected = 4096.0**2 + 100_000 * float(np.float32(1e-2)) ** 2
    assert coactivation.sums(matrix, matrix).weighted[0, 0] == pytest.approx(expected, rel=1e-9)


def test_documents_are_dealt_round_robin_and_never_split() -> None:
    document = np.array([7, 7, 3, 9, 9, 9, 11], np.int32)
    assert coactivation.shards(document, 3).tolist() == [1, 1, 0, 2, 2, 2, 0]
    assert coactivation.shards(document, 100).max() == 3


@given(activations(), st.data())
def test_a_meeting_has_the_sums_of_all_its_sources(made: tuple[np.ndarray, np.ndarray, np.ndarray | None], data: st.DataObject) -> None:
    source, target, sigma = made
    whole = coactivation.sums(sparse.csr_matrix(source), sparse.csr_matrix(target), sigma)
    start = data.draw(st.integers(0, target.shape[1] - 1))
    stop = data.draw(st.integers(start + 1, target.shape[1]))
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, stop - start - 1)))), dtype=np.intp)
    some = coactivation.part(coactivation.targets(sparse.csr_matrix(target)), start, stop)
    np.testing.assert_array_equal(some.n_firing, whole.n_firing[start:stop])
    np.testing.assert_allclose(some.total, whole.target_sum[start:stop], rtol=1e-12)
    firings = coactivation.firings(sparse.csr_matrix(source), range(source.shape[1]))
    meeting = coactivation.meet([firing.over(sigma) for firing in firings], some)
    np.testing.assert_array_equal(meeting.n_coactive, whole.n_coactive[:, start:stop])
    for i in range(source.shape[1]):
        weighted, gated = meeting.sums(i * (stop - start) + chosen)
        np.testing.assert_allclose(weighted, whole.weighted[i, start:stop][chosen], rtol=1e-9)
        np.testing.assert_allclose(gated, whole.gated[i, start:stop][chosen], rtol=1e-9)


def test_stored_zeros_meet_nothing() -> None:
    stored_zero = sparse.csr_matrix((np.array([0.0, 2.0], np.float32), ([0, 1], [0, 0])), shape=(2, 1))
    [firing] = coactivation.firings(stored_zero, [0])
    assert firing.rows.tolist() == [1]
    assert coactivation.meet([firing], coactivation.targets(stored_zero)).n_coactive.tolist() == [[1]]


def test_sums_over_all_tokens_are_made_once_and_forgotten_with_other_activations(tiny_subject: Subject) -> None:
    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:4])
    found = coactivation.targets_of(activations, 1)
    assert coactivation.targets_of(activations, 1) is found
    np.testing.assert_allclose(found.total, activations.layers[1].toarray().astype(np.float64).sum(axis=0), rtol=1e-12)
    silent = replace(activations, layers=tuple(layer * 0 for layer in activations.layers))
    assert not coactivation.targets_of(silent, 1).total.any()
