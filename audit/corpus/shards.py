"""A corpus cut into shards: whole documents up to about so many tokens, each shard named by what is in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from audit.records.statistics import StatisticsKey
from audit.subject.corpus import CorpusText, tokenised

if TYPE_CHECKING:
    from audit.subject.model import LanguageModel

SHARD_TOKENS = 16384
"""Tokens after which a shard ends with its document."""
MAX_SHARD_TOKENS = 1 << 21
_TEXTS_AT_ONCE = 256
"""Given to the tokenizer together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Consecutive documents of a corpus."""

    documents: tuple[tuple[int, ...], ...]
    """Token ids of each; a part of a document that is longer than the model's context is one of its own."""
    sha256: str
    end: int
    """Bytes of the corpus up to its end."""

    @property
    def n_ids(self) -> int:
        """Token ids, special tokens included."""
        return sum(map(len, self.documents))


def shard_sha256(key: StatisticsKey, documents: Sequence[Sequence[int]], occurrence: int = 0) -> str:
    """Digest of a shard: of the model, the dictionary, the template, and the token ids of its documents in order.

    Args:
        key: what its statistics belong to.
        documents: token ids of each.
        occurrence: how often the same shard came before it in its corpus. A text that repeats itself counts as often as it is there.
    """
    found = hashlib.sha256()
    for part in (key.model_sha256, key.dictionary_sha256, key.template_sha256, *([str(occurrence)] if occurrence else [])):
        found.update(f"{part}\n".encode())
    for document in documents:
        found.update(f"{len(document)}\n".encode())
        found.update(np.asarray(document, dtype="<i4").tobytes())
    return found.hexdigest()


def shards(model: LanguageModel, texts: Iterator[CorpusText], key: StatisticsKey, shard_tokens: int = SHARD_TOKENS) -> Iterator[Shard]:
    """Cut a corpus into shards; the same corpus is cut alike every time.

    Args:
        model: whose tokenizer reads it.
        texts: its documents.
        key: what the statistics belong to.
        shard_tokens: tokens, special ones included, after which a shard ends with its document.
    """
    seen: Counter[str] = Counter()
    for documents, end in _cut(model, texts, shard_tokens):
        plain = shard_sha256(key, documents)
        sha256 = shard_sha256(key, documents, seen[plain])
        seen[plain] += 1
        yield Shard(documents=documents, sha256=sha256, end=end)


def _cut(model: LanguageModel, texts: Iterator[CorpusText], shard_tokens: int) -> Iterator[tuple[tuple[tuple[int, ...], ...], int]]:
    kept: list[tuple[int, ...]] = []
    size = end = 0
    while batch := tuple(islice(texts, _TEXTS_AT_ONCE)):
        for text, parts in zip(batch, tokenised(model, [each.text for each in batch]), strict=True):
            end = text.end
            for part in parts:
                kept.append(part)
                size += len(part)
                if size >= shard_tokens:
                    yield tuple(kept), end
                    kept, size = [], 0
    if kept:
        yield tuple(kept), end
