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
        # What is weaker than the last of a full list is not kept, and a feature that is then in one list alone is in order already.
        n = int(max(self.feature[-1], other.feature[-1])) + 1
        floor = np.maximum(self._floor(n), other._floor(n))
        mine, theirs = (each._at(each.activation >= floor[each.feature]) for each in (self, other))
        both = np.zeros((2, n), dtype=bool)
        both[0, mine.feature] = both[1, theirs.feature] = True
        contested = both[0] & both[1]
        settled = chained([mine._at(~contested[mine.feature]), theirs._at(~contested[theirs.feature])])
        decided = strongest(chained([mine._at(contested[mine.feature]), theirs._at(contested[theirs.feature])]))
        found = chained([settled, decided])
        return found._at(np.argsort(found.feature, kind="stable"))

    def _floor(self, n: int) -> NDArray[np.float32]:
        """(n,) the last activation of each feature whose list is full, or less than any."""
        found = np.full(n, -np.inf, dtype=np.float32)
        starts = np.flatnonzero(~_repeats(self.feature))
        full = starts[np.diff(np.append(starts, len(self.feature))) == N_EXAMPLES]
        found[self.feature[full]] = self.activation[full + N_EXAMPLES - 1]
        return found

    def _at(self, places: NDArray[np.intp] | NDArray[np.bool_] | slice) -> TopExamples:
        return TopExamples(
            feature=self.feature[places],
            activation=self.activation[places],
            document=self.document[places],
            position=self.position[places],
        )


def chained(parts: Sequence[TopExamples]) -> TopExamples:
    """Examples of all parts, one part after the other."""
    return TopExamples(
        feature=np.concatenate([part.feature for part in parts]),
        activation=np.concatenate([part.activation for part in parts]),
        document=np.concatenate([part.document for part in parts]),
        position=np.concatenate([part.position for part in parts]),
    )


def strongest(given: TopExamples) -> TopExamples:
    """Of candidates in any order, those that are kept, in order."""
    # Once by document, to keep the best of each, then by strength: both orders are total, so nothing depends on that of the input.
    one = given._at(np.lexsort((given.position, -given.activation, given.document, given.feature)))
    one = one._at(~_repeats(one.feature, one.document))
    one = one._at(np.lexsort((one.position, one.document, -one.activation, one.feature)))
    return one._at(_rank(one.feature) < N_EXAMPLES)


def _rank(feature: NDArray[np.int32]) -> NDArray[np.intp]:
    """(n,) place of each row among those of its feature, from 0; rows of a feature are neighbours."""
    starts = np.flatnonzero(~_repeats(feature))
    return np.arange(len(feature)) - np.repeat(starts, np.diff(np.append(starts, len(feature))))


def _likely(given: TopExamples, copies: int) -> TopExamples:
    """Without those that cannot be kept, in any order, found by one sort of numbers.

    Args:
        given: activations > 0; a document has at most ``copies`` a feature.
        copies: documents with the same content.
    """
    # The bits of a positive float32 are ordered as the number is.
    falling = np.uint64(0xFFFFFFFF) - given.activation.view(np.uint32).astype(np.uint64)
    key = (given.feature.astype(np.uint64) << np.uint64(32)) | falling
    one = given._at(np.argsort(key))
    rank = _rank(one.feature)
    last = np.flatnonzero(rank == N_EXAMPLES * copies - 1)
    floor = np.zeros(int(one.feature[-1]) + 1, dtype=np.float32)
    floor[one.feature[last]] = one.activation[last]
    return one._at(one.activation >= floor[one.feature])


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
    found = TopExamples(
        feature=feature[first],
        activation=matrix.data[first],
        document=ids[where[first]],
        position=position[matrix.indices[first]],
    )
    return strongest(_likely(found, int(np.unique(ids, return_counts=True)[1].max())))
