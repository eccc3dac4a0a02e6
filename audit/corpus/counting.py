"""From activations on the tokens of some documents to their statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from audit.corpus.documents import DocumentTable
from audit.corpus.examples import document_id, peaks
from audit.corpus.fixed import fixed_sums
from audit.corpus.pairs import all_pairs, joined
from audit.corpus.statistics import LayerSums, Statistics
from audit.records.statistics import StatisticsKey

if TYPE_CHECKING:
    from audit.subject.activations import TokenActivations

_INPUTS_DIVIDED = ("mlp_in", "mlp_in_unweighted")


def reads_divided(input_hook: str) -> bool:
    """Whether what a dictionary reads there is divided by the norm's denominator, token by token."""
    return input_hook in _INPUTS_DIVIDED


def count(activations: TokenActivations, documents: Sequence[Sequence[int]], key: StatisticsKey, shard: str) -> Statistics:
    """Statistics of one shard.

    Args:
        activations: of its documents, as ``observe`` gives them.
        documents: token ids of each.
        key: what the statistics belong to.
        shard: digest of the shard.

    Raises:
        SubjectError: an activation is not a finite number.
    """
    matrices = tuple(_stored(layer) for layer in activations.layers)
    ids = np.array([document_id(document) for document in documents], dtype=np.uint64)
    layers = tuple(_layer(matrix, activations.document, activations.position, ids) for matrix in matrices)
    candidates = [(each.layer, each.index) for each in key.candidates]
    table = DocumentTable.of(documents)
    return Statistics(
        key=key,
        layers=layers,
        pairs=joined(list(all_pairs(candidates, matrices, activations.sigma if key.divided else None))),
        documents=table.only([layer.examples.document for layer in layers]),
        n_tokens=activations.n_tokens,
        n_documents=len(documents),
        shards=(shard,),
    )


def _stored(matrix: csr_matrix) -> csr_matrix:
    """The same without zeros."""
    if bool(matrix.data.all()):
        return matrix
    copy = matrix.copy()
    copy.eliminate_zeros()
    return copy


def _layer(matrix: csr_matrix, document: NDArray[np.int32], position: NDArray[np.int32], ids: NDArray[np.uint64]) -> LayerSums:
    n = matrix.shape[1]
    wide = matrix.data.astype(np.float64)
    total, squares = fixed_sums(wide, matrix.indices, n), fixed_sums(wide * wide, matrix.indices, n)
    by_feature = matrix.tocsc()
    n_firing = np.diff(by_feature.indptr).astype(np.int64)
    largest = np.zeros(n, dtype=np.float32)
    fires = np.flatnonzero(n_firing)
    if len(fires):
        largest[fires] = np.maximum.reduceat(by_feature.data, by_feature.indptr[fires])
    return LayerSums(
        n_firing=n_firing,
        total=total,
        squares=squares,
        largest=largest,
        examples=peaks(by_feature, document, position, ids),
    )
