"""Token ids of the documents that examples are in, so that they can be shown without the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.corpus.examples import document_id

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ragged:
    """Token ids of documents, end to end."""

    ids: Ids
    """(n_tokens,), special tokens included."""
    ends: NDArray[np.int64]
    """(n_documents,) where each ends."""

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]]) -> Ragged:
        """Of lists of token ids."""
        parts = [np.asarray(document, dtype=np.int32) for document in documents]
        return cls(
            ids=np.concatenate([np.zeros(0, dtype=np.int32), *parts]),
            ends=np.cumsum([len(part) for part in parts], dtype=np.int64),
        )

    def document(self, place: int) -> Ids:
        """Token ids of one."""
        return self.ids[self.ends[place - 1] if place else 0 : self.ends[place]]

    def only(self, places: NDArray[np.intp]) -> Ragged:
        """Some documents, in that order."""
        lengths = np.diff(self.ends, prepend=0)[places]
        ends = np.cumsum(lengths)
        entries = np.repeat(self.ends[places] - ends, lengths) + np.arange(int(lengths.sum()))
        return Ragged(ids=self.ids[entries], ends=ends)

    def followed_by(self, other: Ragged) -> Ragged:
        """These documents, then those."""
        return Ragged(ids=np.concatenate([self.ids, other.ids]), ends=np.concatenate([self.ends, other.ends + len(self.ids)]))

    def __len__(self) -> int:
        """Documents."""
        return len(self.ends)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DocumentTable:
    """Documents by ``document_id``, each once, in the order of the ids."""

    id: NDArray[np.uint64]
    """(n_documents,)."""
    tokens: Ragged

    @classmethod
    def none(cls) -> DocumentTable:
        """No documents."""
        return cls(id=np.zeros(0, dtype=np.uint64), tokens=Ragged.of([]))

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]]) -> DocumentTable:
        """Of lists of token ids."""
        ids = np.array([document_id(document) for document in documents], dtype=np.uint64)
        unique, first = np.unique(ids, return_index=True)
        return cls(id=unique, tokens=Ragged.of(documents).only(first))

    def merged(self, other: DocumentTable) -> DocumentTable:
        """Those of both."""
        unique, first = np.unique(np.concatenate([self.id, other.id]), return_index=True)
        return DocumentTable(id=unique, tokens=self.tokens.followed_by(other.tokens).only(first))

    def only(self, wanted: Sequence[NDArray[np.uint64]]) -> DocumentTable:
        """Those that are wanted."""
        ids = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *(np.unique(part) for part in wanted)]))
        kept = np.flatnonzero(np.isin(self.id, ids))
        return DocumentTable(id=self.id[kept], tokens=self.tokens.only(kept))

    def tokens_of(self, document: int) -> Ids:
        """Token ids of the document with that id; none if it is not here."""
        place = int(np.searchsorted(self.id, np.uint64(document)))
        found = place < len(self.id) and int(self.id[place]) == document
        return self.tokens.document(place) if found else np.zeros(0, dtype=np.int32)
