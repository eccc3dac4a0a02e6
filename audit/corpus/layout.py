"""How statistics and activations lie in a file of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from audit.corpus.documents import DocumentTable, Ragged
from audit.corpus.examples import TopExamples
from audit.corpus.files import Array, ArrayFile, damaged
from audit.corpus.fixed import FixedSums
from audit.corpus.pairs import PairSums
from audit.corpus.statistics import LayerSums, Statistics
from audit.records.statistics import StatisticsKey

FORMAT_VERSION = 1
Record = TypeVar("Record")
_INSIDE: dict[str, type] = {
    "total": FixedSums,
    "squares": FixedSums,
    "weighted": FixedSums,
    "gated": FixedSums,
    "examples": TopExamples,
    "tokens": Ragged,
}
"""Fields that are groups of arrays themselves."""
_DTYPES: dict[str, type[np.generic]] = {
    "n_firing": np.int64,
    "whole": np.int64,
    "units": np.int64,
    "largest": np.float32,
    "feature": np.int32,
    "activation": np.float32,
    "document": np.uint64,
    "position": np.int32,
    "candidate": np.int32,
    "layer": np.int32,
    "index": np.int32,
    "n_coactive": np.int64,
    "id": np.uint64,
    "ids": np.int32,
    "ends": np.int64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a file of statistics says of itself."""

    format_version: int
    key: StatisticsKey
    n_tokens: int
    n_documents: int
    shards: tuple[str, ...]
    has_activations: bool


_HEADS = TypeAdapter(Head)


def pack(statistics: Statistics, further: Mapping[str, Array] | None = None) -> ArrayFile:
    """Statistics as a file, with further arrays beside them."""
    head = Head(
        format_version=FORMAT_VERSION,
        key=statistics.key,
        n_tokens=statistics.n_tokens,
        n_documents=statistics.n_documents,
        shards=statistics.shards,
        has_activations=further is not None,
    )
    arrays = dict(further or {})
    for layer, sums in enumerate(statistics.layers):
        arrays.update(_flat(f"layer.{layer:03d}", sums))
    arrays.update(_flat("pairs", statistics.pairs))
    arrays.update(_flat("documents", statistics.documents))
    return ArrayFile(head=_HEADS.dump_json(head).decode(), arrays=arrays)


def head_of(content: ArrayFile, path: Path) -> Head:
    """What a file says of itself.

    Raises:
        SubjectError: it is not a file of statistics, or one of another version.
    """
    try:
        head = _HEADS.validate_json(content.head)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, f"is not a file of statistics: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if head.format_version != FORMAT_VERSION:
        raise damaged(path, f"has format version {head.format_version}, this program reads {FORMAT_VERSION}")
    return head


def unpack(content: ArrayFile, path: Path) -> Statistics:
    """Statistics of a file.

    Raises:
        SubjectError: an array is missing, or not of the type and size that it has to be.
    """
    head = head_of(content, path)
    try:
        layers = tuple(_record(LayerSums, content.arrays, f"layer.{layer:03d}") for layer in range(len(head.key.widths)))
        pairs, documents = _record(PairSums, content.arrays, "pairs"), _record(DocumentTable, content.arrays, "documents")
    except (KeyError, TypeError) as error:
        raise damaged(path, f"lacks an array, or has one of another type: {error}") from error
    wrong = next(_misfits(head.key, layers, pairs, documents), None)
    if wrong is not None:
        raise damaged(path, f"has arrays that do not fit each other: {wrong}")
    return Statistics(
        key=head.key,
        layers=layers,
        pairs=pairs,
        documents=documents,
        n_tokens=head.n_tokens,
        n_documents=head.n_documents,
        shards=head.shards,
    )


def _flat(prefix: str, record: Any) -> Iterator[tuple[str, Array]]:
    for field in fields(record):
        value = getattr(record, field.name)
        if field.name in _INSIDE:
            yield from _flat(f"{prefix}.{field.name}", value)
        else:
            yield f"{prefix}.{field.name}", value


def _record(cls: type[Record], arrays: Mapping[str, Array], prefix: str) -> Record:
    given: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        name = f"{prefix}.{field.name}"
        given[field.name] = _record(_INSIDE[field.name], arrays, name) if field.name in _INSIDE else _checked(arrays[name], name)
    return cls(**given)


def _checked(array: Array, name: str) -> Array:
    wanted = np.dtype(_DTYPES[name.rpartition(".")[2]])
    if array.dtype != wanted or array.ndim != 1:
        raise TypeError(f"{name} is {array.dtype} {list(array.shape)}, expected {wanted} of one axis")
    return array


def _misfits(key: StatisticsKey, layers: tuple[LayerSums, ...], pairs: PairSums, documents: DocumentTable) -> Iterator[str]:
    for layer, (width, sums) in enumerate(zip(key.widths, layers, strict=True)):
        found = {
            len(part) for part in (sums.n_firing, sums.largest, sums.total.whole, sums.total.units, sums.squares.whole, sums.squares.units)
        }
        if found != {width}:
            yield f"layer {layer} has {sorted(found)} features, expected {width}"
        yield from _uneven(f"examples of layer {layer}", *(getattr(sums.examples, field.name) for field in fields(TopExamples)))
        yield from _outside(f"features in examples of layer {layer}", sums.examples.feature, width)
    yield from _uneven("pairs", pairs.candidate, pairs.layer, pairs.index, pairs.n_coactive)
    yield from _uneven("sums of pairs", pairs.candidate, *_limbs(pairs.weighted), *_limbs(pairs.gated))
    yield from _outside("candidates of pairs", pairs.candidate, len(key.candidates))
    yield from _outside("layers of pairs", pairs.layer, len(key.widths))
    if len(pairs.layer) and not (pairs.layer < 0).any() and not (pairs.layer >= len(key.widths)).any():
        yield from _outside("targets of pairs", pairs.index, np.asarray(key.widths)[pairs.layer])
    yield from _uneven("documents", documents.id, documents.tokens.ends)
    ends = documents.tokens.ends
    if (np.diff(ends, prepend=0) < 0).any() or (int(ends[-1]) if len(ends) else 0) != len(documents.tokens.ids):
        yield "the ends of documents do not end with their tokens"


def _limbs(sums: FixedSums) -> tuple[Array, Array]:
    return sums.whole, sums.units


def _uneven(name: str, *columns: Array) -> Iterator[str]:
    if len({len(column) for column in columns}) > 1:
        yield f"{name} have columns of {sorted({len(column) for column in columns})} rows"


def _outside(name: str, values: Any, limit: Any) -> Iterator[str]:
    if len(values) and ((values < 0) | (values >= limit)).any():
        yield f"{name} lie outside 0 to {np.max(limit) - 1}"
