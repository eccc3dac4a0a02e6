"""Sparse activations on random documents: what statistics are counted on where no model is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import sparse

from audit.corpus.counting import count
from audit.corpus.layout import pack
from audit.corpus.shards import shard_sha256
from audit.corpus.statistics import Statistics
from audit.records import FeatureId
from audit.records.statistics import StatisticsKey
from audit.subject.activations import TokenActivations


@dataclass(frozen=True)
class Document:
    """One document with dense activations of its own on every token but the first."""

    ids: tuple[int, ...]
    layers: tuple[np.ndarray, ...]
    """(tokens - 1, n_features) float32 a layer."""
    sigma: np.ndarray
    """(tokens - 1, n_layers + 1) float32."""


@dataclass(frozen=True)
class Made:
    """Documents, and the key of their statistics."""

    key: StatisticsKey
    documents: tuple[Document, ...]


def key_for(widths: Sequence[int], candidates: Sequence[FeatureId] = (), *, divided: bool = True) -> StatisticsKey:
    return StatisticsKey(
        model_sha256="a" * 64,
        dictionary_sha256="b" * 64,
        template_sha256="c" * 64,
        dtype="float32",
        kind="clt",
        widths=tuple(widths),
        divided=divided,
        candidates=tuple(candidates),
    )


def make(seed: int, n_documents: int = 12, widths: Sequence[int] = (5, 0, 7, 3), *, divided: bool = True, ties: bool = True) -> Made:
    """Random documents; with ``ties`` many activations are equal, as they are where documents begin alike."""
    rng = np.random.default_rng(seed)
    candidates = (FeatureId("clt", 0, 1), FeatureId("clt", 0, 4), FeatureId("clt", 2, 6))

    def activations(n: int, width: int) -> np.ndarray:
        drawn = rng.choice([0.25, 1.0, 3.5], (n, width)) if ties else rng.gamma(1.0, 2.0, (n, width))
        return (drawn * (rng.random((n, width)) < 0.4)).astype(np.float32)

    documents = []
    for _ in range(n_documents):
        n = int(rng.integers(0, 6))
        ids = tuple(rng.integers(1, 9, n + 1).tolist())
        sigma = rng.uniform(0.3, 3.0, (n, len(widths) + 1)).astype(np.float32)
        documents.append(Document(ids=ids, layers=tuple(activations(n, width) for width in widths), sigma=sigma))
    return Made(key=key_for(widths, candidates, divided=divided), documents=tuple(documents))


def activations_of(documents: Sequence[Document], widths: Sequence[int]) -> TokenActivations:
    """As ``observe`` gives them, were these what a model computed."""
    lengths = [len(each.ids) - 1 for each in documents]
    stacked = [[np.zeros((0, width), np.float32), *(each.layers[layer] for each in documents)] for layer, width in enumerate(widths)]
    return TokenActivations(
        token_ids=np.array([token for each in documents for token in each.ids[1:]], dtype=np.int32),
        document=np.repeat(np.arange(len(documents), dtype=np.int32), lengths),
        position=np.array([place for n in lengths for place in range(1, n + 1)], dtype=np.int32),
        layers=tuple(sparse.csr_matrix(np.concatenate(parts)) for parts in stacked),
        sigma=np.concatenate([np.zeros((0, len(widths) + 1), np.float32), *(each.sigma for each in documents)]),
    )


def counted(key: StatisticsKey, documents: Sequence[Document]) -> Statistics:
    """Statistics of one shard of documents."""
    ids = [each.ids for each in documents]
    return count(activations_of(documents, key.widths), ids, key, shard_sha256(key, ids))


def same(one: Statistics, other: Statistics, *, but_shards: bool = False) -> None:
    """Both hold the same, to the last bit and type."""
    assert (one.key, one.n_tokens, one.n_documents) == (other.key, other.n_tokens, other.n_documents)
    assert but_shards or one.shards == other.shards
    left, right = pack(one).arrays, pack(other).arrays
    assert sorted(left) == sorted(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert array.shape == right[name].shape, name
        assert array.tobytes() == right[name].tobytes(), name


@pytest.fixture(scope="session", name="key_for")
def _key_for() -> Callable[..., StatisticsKey]:
    return key_for


@pytest.fixture(scope="session", name="make")
def _make() -> Callable[..., Made]:
    return make


@pytest.fixture(scope="session", name="activations_of")
def _activations_of() -> Callable[..., TokenActivations]:
    return activations_of


@pytest.fixture(scope="session", name="counted")
def _counted() -> Callable[..., Statistics]:
    return counted


@pytest.fixture(scope="session", name="same")
def _same() -> Callable[..., None]:
    return same
