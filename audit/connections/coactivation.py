"""Co-activation: how strongly a source and a target fire on the same tokens, as plain sums over tokens.

Everything is accumulated in float64 from sparse matrices whose rows are content tokens. The optional ``sigma`` is the frozen norm
denominator at the target's site: where given, ``a_i(t)`` is replaced by ``a_i(t) / sigma(t)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

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
