"""The strongest examples of every feature of a layer, kept so that they do not depend on how a corpus is dealt out.

An example is a token of a document, and a document counts once a feature. Documents are told apart by their content, not by their number in
a file, which a split would change. Examples are ordered by activation, largest first, then by document, then by position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix

N_EXAMPLES = 8
"""Kept a feature."""


def document_id(ids: Sequence[int]) -> int:
    """The first 8 bytes, most significant first, of the SHA-256 of a document's token ids as little-endian int32."""
    digest = hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).digest()
    return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopExamples:
    """Examples of the features of a layer, by feature and then strongest first."""

    feature: NDArray[np.int32]
    """(n,) index in the layer."""
    activation: NDArray[np.float32]
    """(n,)."""
    document: NDArray[np.uint64]
    """(n,) ``document_id`` of where it is."""
    position: NDArray[np.int32]
    """(n,) of the token in its document."""

    @classmethod
    def none(cls) -> TopExamples:
        """No examples."""
        return cls(
            feature=np.zeros(0, dtype=np.int32),
            activation=np.zeros(0, dtype=np.float32),
            document=np.zeros(0, dtype=np.uint64),
            position=np.zeros(0, dtype=np.int32),
        )

    def of(self, feature: int) -> TopExamples:
        """Those of one feature."""
        return self._at(slice(*np.searchsorted(self.feature, [feature, feature + 1])))

    def merged(self, other: TopExamples) -> TopExamples:
        """The strongest of both."""
        if not len(self.feature) or not len(other.feature):
            return other if not len(self.feature) else self
        return strongest(
            TopExamples(
                feature=np.concatenate([self.feature, other.feature]),
                activation=np.concatenate([self.activation, other.activation]),
                document=np.concatenate([self.document, other.document]),
                position=np.concatenate([self.position, other.position]),
            )
        )

    def _at(self, places: NDArray[np.intp] | NDArray[np.bool_] | slice) -> TopExamples:
        return TopExamples(
            feature=self.feature[places],
            activation=self.activation[places],
            document=self.document[places],
            position=self.position[places],
        )


def strongest(given: TopExamples) -> TopExamples:
    """Of candidates in any order, those that are kept, in order."""
    # Once by document, to keep the best of each, then by strength: both orders are total, so nothing depends on that of the input.
    one = given._at(np.lexsort((given.position, -given.activation, given.document, given.feature)))
    one = one._at(~_repeats(one.feature, one.document))
    one = one._at(np.lexsort((one.position, one.document, -one.activation, one.feature)))
    starts = np.flatnonzero(~_repeats(one.feature))
    rank = np.arange(len(one.feature)) - np.repeat(starts, np.diff(np.append(starts, len(one.feature))))
    return one._at(rank < N_EXAMPLES)


def _repeats(*columns: NDArray[np.generic]) -> NDArray[np.bool_]:
    """(n,) whether a row is as the one before it."""
    found = np.ones(len(columns[0]), dtype=bool)
    found[:1] = False
    for column in columns:
        found[1:] &= column[1:] == column[:-1]
    return found


def peaks(matrix: csc_matrix, document: NDArray[np.int32], position: NDArray[np.int32], ids: NDArray[np.uint64]) -> TopExamples:
    """The strongest examples of every feature of a layer.

    Args:
        matrix: (n_tokens, n_features) activations > 0, tokens in order of document and position.
        document: (n_tokens,) index of each token's document.
        position: (n_tokens,) of each token in it.
        ids: (n_documents,) ``document_id`` of each.
    """
    feature = np.repeat(np.arange(matrix.shape[1], dtype=np.int32), np.diff(matrix.indptr))
    where = document[matrix.indices]
    starts = np.flatnonzero(~_repeats(feature, where))
    if not len(starts):
        return TopExamples.none()
    lengths = np.diff(np.append(starts, len(feature)))
    highest = np.maximum.reduceat(matrix.data, starts)
    # The first token of a document with its highest activation there.
    at = np.flatnonzero(matrix.data == np.repeat(highest, lengths))
    run = np.repeat(np.arange(len(starts)), lengths)[at]
    first = at[~_repeats(run)]
    return strongest(
        TopExamples(
            feature=feature[first],
            activation=matrix.data[first],
            document=ids[where[first]],
            position=position[matrix.indices[first]],
        )
    )
