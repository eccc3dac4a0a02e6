"""Co-activation: how strongly a source and a target fire on the same tokens, as plain sums over tokens.

Everything is accumulated in float64 from sparse matrices whose rows are content tokens. The optional ``sigma`` is the frozen norm
denominator at the target's site: where given, ``a_i(t)`` is replaced by ``a_i(t) / sigma(t)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from audit.subject.activations import TokenActivations

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coactivation:
    """Sums over the tokens of a corpus for S sources and F targets of one layer."""

    weighted: Floats
    """(S, F): sum of a_j · a_i / sigma, the numerator of TWERA."""
    gated: Floats
    """(S, F): sum of 1(a_j > 0) · a_i / sigma, the numerator of ERA."""
    n_coactive: NDArray[np.int64]
    """(S, F): tokens on which both fire."""
    target_sum: Floats
    """(F,): sum of a_j, the denominator of TWERA."""
    n_firing: NDArray[np.int64]
    """(F,): tokens on which the target fires."""
    n_tokens: int


def sums(source: sparse.csr_matrix, target: sparse.csr_matrix, sigma: NDArray[np.float32] | None = None) -> Coactivation:
    """Sum the products of activations over tokens.

    Args:
        source: (n_tokens, S) activations of the sources, ≥ 0.
        target: (n_tokens, F) activations of one later layer, ≥ 0, on the same tokens.
        sigma: (n_tokens,) norm denominators at the target's site, or None.
    """
    source, target = positive(source), positive(target)
    flow = divided(source, sigma).T.tocsr()  # (S, n_tokens)
    fires = indicator(target)
    return Coactivation(
        weighted=(flow @ target).toarray(),
        gated=(flow @ fires).toarray(),
        n_coactive=np.rint((indicator(source).T.tocsr() @ fires).toarray()).astype(np.int64),
        target_sum=np.asarray(target.sum(axis=0)).ravel(),
        n_firing=np.asarray(fires.sum(axis=0)).ravel().astype(np.int64),
        n_tokens=target.shape[0],
    )


def shard_sums(
    source: sparse.csr_matrix, target: sparse.csr_matrix, sigma: NDArray[np.float32] | None, shard: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """The two sums of TWERA, shard by shard, for one source and a few targets of one layer.

    Args:
        source: (n_tokens, 1) activation of the source.
        target: (n_tokens, K) activations of the targets.
        sigma: (n_tokens,) norm denominators at the targets' site, or None.
        shard: (n_tokens,) shard of each token, from 0; see ``shards``.

    Returns:
        weighted (n_shards, K), sum of a_j · a_i / sigma; target_sum (n_shards, K), sum of a_j.
    """
    n_tokens = len(shard)
    dealt = sparse.csr_matrix((np.ones(n_tokens), (shard, np.arange(n_tokens))), shape=(int(shard.max(initial=-1)) + 1, n_tokens))
    source, target = positive(source), positive(target)
    flow = divided(source, sigma).toarray().ravel()
    return (dealt.multiply(flow[np.newaxis, :]).tocsr() @ target).toarray(), (dealt @ target).toarray()


def shards(document: NDArray[np.int32], n_shards: int) -> NDArray[np.int64]:
    """Deal documents round-robin into shards; a document is never split.

    Args:
        document: (n_tokens,) document of each token.
        n_shards: shards wanted; fewer when there are fewer documents.

    Returns:
        (n_tokens,) shard of each token, 0 … min(n_shards, documents) - 1.
    """
    _, order = np.unique(document, return_inverse=True)
    return np.asarray(order, dtype=np.int64) % n_shards


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Firing:
    """Where one source fires."""

    rows: NDArray[np.intp]
    """(n,) tokens, in order."""
    values: Floats
    """(n,) its activation there."""

    def over(self, sigma: NDArray[np.float32] | None) -> Firing:
        """With ``a_i(t) / sigma(t)`` for its activation."""
        return self if sigma is None else Firing(rows=self.rows, values=self.values / sigma[self.rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """Activations of neighbouring features of one layer on every token."""

    matrix: sparse.csr_matrix
    """(n_tokens, P) without stored zeros."""
    total: Floats
    """(P,): sum of a_j."""
    n_firing: NDArray[np.intp]
    """(P,): tokens on which it fires."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Meeting:
    """All that P targets do on the tokens on which each of S sources fires; a place s · P + j is that of source s and target j."""

    flow: Floats
    """(n,) the sources' activations on the tokens on which they fire, source by source."""
    targets: Targets
    lengths: NDArray[np.intp]
    """(n,) targets that fire on each of those tokens."""
    entries: NDArray[np.intp]
    """(m,) where in the targets' matrix their activations on those tokens are, token by token."""
    places: NDArray[np.intp]
    """(m,) of source and target there."""
    n_coactive: NDArray[np.intp]
    """(S, P): tokens on which both fire."""

    def sums(self, chosen: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Sums of a_j · a_i and of 1(a_j > 0) · a_i at some places, (K,) and (K,); the others cost next to nothing."""
        order = np.full(self.n_coactive.size, -1, dtype=np.int32)
        order[chosen] = np.arange(len(chosen))
        kept = order[self.places]
        wanted = np.flatnonzero(kept >= 0)
        kept, flow = kept[wanted], np.repeat(self.flow, self.lengths)[wanted]
        product = flow * self.targets.matrix.data[self.entries[wanted]]
        return np.bincount(kept, product, len(chosen)).astype(np.float64), np.bincount(kept, flow, len(chosen)).astype(np.float64)


def firings(layer: sparse.csr_matrix, indices: Sequence[int]) -> list[Firing]:
    """Where some features of a layer fire, from its (n_tokens, n_features) activations."""
    columns = positive(layer[:, list(indices)]).tocsc()
    spans = zip(columns.indptr[:-1], columns.indptr[1:], strict=True)
    return [Firing(rows=columns.indices[low:high].astype(np.intp), values=columns.data[low:high]) for low, high in spans]


def targets(layer: sparse.csr_matrix) -> Targets:
    """The features of a layer as targets, with their sums over all tokens."""
    matrix = layer if bool(layer.data.all()) else positive(layer)
    total = matrix.T @ np.ones(matrix.shape[0])  # float64: a sum over tokens in float32 would stand still
    return Targets(matrix=matrix, total=total, n_firing=np.bincount(matrix.indices, minlength=matrix.shape[1]))


def targets_of(activations: TokenActivations, layer: int) -> Targets:
    """``targets`` of a layer, summed once for the same activations."""
    if layer not in activations.by_layer:
        activations.by_layer[layer] = targets(activations.layers[layer])
    found: Targets = activations.by_layer[layer]
    return found


def part(whole: Targets, start: int, stop: int) -> Targets:
    """The targets from ``start`` up to ``stop``."""
    if (start, stop) == (0, whole.matrix.shape[1]):
        return whole
    picked = slice(start, stop)
    return Targets(matrix=whole.matrix[:, picked], total=whole.total[picked], n_firing=whole.n_firing[picked])


def meet(sources: Sequence[Firing], some: Targets) -> Meeting:
    """Count the tokens on which sources fire together with each target."""
    rows = np.concatenate([np.zeros(0, dtype=np.intp), *(each.rows for each in sources)])
    starts, width = some.matrix.indptr[rows], some.matrix.shape[1]
    lengths = (some.matrix.indptr[rows + 1] - starts).astype(np.intp)
    shift = np.cumsum(lengths) - lengths
    entries = np.repeat(starts - shift, lengths) + np.arange(int(lengths.sum()))
    first = np.repeat(np.arange(len(sources)) * width, [len(each.rows) for each in sources])
    places = some.matrix.indices[entries] + np.repeat(first, lengths)
    return Meeting(
        flow=np.concatenate([np.zeros(0), *(each.values for each in sources)]),
        targets=some,
        lengths=lengths,
        entries=entries,
        places=places,
        n_coactive=np.bincount(places, minlength=len(sources) * width).reshape(len(sources), width),
    )


def positive(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """A float64 copy without stored zeros."""
    copy = sparse.csr_matrix(matrix, dtype=np.float64, copy=True)
    copy.eliminate_zeros()
    return copy


def divided(source: sparse.csr_matrix, sigma: NDArray[np.float32] | None) -> sparse.csr_matrix:
    """a_i(t) / sigma(t), or a_i(t) itself: (n_tokens, S)."""
    if sigma is None:
        return source
    return source.multiply(1.0 / sigma.astype(np.float64)[:, np.newaxis]).tocsr()


def indicator(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """1 where the matrix stores a value, in float64."""
    return sparse.csr_matrix((np.ones(matrix.nnz), matrix.indices, matrix.indptr), shape=matrix.shape)
