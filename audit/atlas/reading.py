"""Answers from an atlas: only the rows of the feature that is asked for are read. The standard library alone."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from audit.atlas.labels import labels_name, read_label
from audit.atlas.layout import COLUMNS, COUNTS, NONE, Header, Side, damaged, read_header, table_name
from audit.atlas.manifest import Manifest, all_pairs, digest, read
from audit.errors import UsageError
from audit.plain import plain
from audit.records.atlas import AtlasNeighbour, AtlasNeighbours, AtlasTotals
from audit.records.names import FeatureId


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """What one table says of one feature."""

    positive: tuple[AtlasNeighbour, ...]
    negative: tuple[AtlasNeighbour, ...]
    n_firing: int | None
    n_unsupported: int
    merged: tuple[int, ...]


_NOT_BEGUN = _Row(positive=(), negative=(), n_firing=None, n_unsupported=0, merged=())
_Found = tuple[float, float, float, float, float, float]
"""Layer, index, virtual weight, ERA, TWERA and support of a neighbour."""


@dataclass(frozen=True, slots=True)
class Atlas:
    """The atlas in a folder."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Atlas:
        """Read the manifest; tables are opened when they are asked.

        Raises:
            UsageError: the folder holds no atlas that can be read.
        """
        return cls(folder, read(folder))

    def totals(self) -> AtlasTotals:
        """What the folder holds."""
        key = self.manifest.key
        present = [layer for layer, width in enumerate(key.widths) if width]
        return AtlasTotals(
            folder=str(self.folder),
            key=key,
            n_features=sum(key.widths),
            active=self.manifest.active,
            n_pairs=len(all_pairs(key.widths)),
            n_pairs_done=len(self.manifest.done),
            n_layers=len(present),
            n_layers_labelled=sum((self.folder / labels_name(layer)).exists() for layer in present),
            n_bytes=sum(path.stat().st_size for path in self.folder.glob("*.safetensors")),
        )

    def neighbours(self, feature: FeatureId) -> AtlasNeighbours:
        """A feature's strongest targets and sources; of an unfinished atlas, those found so far.

        Raises:
            UsageError: the dictionary has no such feature, or a table is missing or damaged.
        """
        key = self.manifest.key
        self._refuse_unknown(feature)
        down, up = self._row("source", feature), self._row("target", feature)
        return AtlasNeighbours(
            feature=feature,
            label=read_label(self.folder, feature.layer, feature.index),
            positive_targets=down.positive,
            negative_targets=down.negative,
            positive_sources=up.positive,
            negative_sources=up.negative,
            n_firing=up.n_firing if down.n_firing is None else down.n_firing,
            n_unsupported=down.n_unsupported,
            n_tokens=key.n_tokens,
            support_cutoff=key.support,
            target_layers=down.merged,
            source_layers=up.merged,
            n_pairs=len(all_pairs(key.widths)),
            n_pairs_done=len(self.manifest.done),
        )

    @property
    def _finished(self) -> bool:
        return len(self.manifest.done) == len(all_pairs(self.manifest.key.widths))

    def _refuse_unknown(self, feature: FeatureId) -> None:
        key = self.manifest.key
        width = key.widths[feature.layer] if 0 <= feature.layer < len(key.widths) else 0
        if feature.dictionary == key.kind and 0 <= feature.index < width:
            return
        layers = [layer for layer, n in enumerate(key.widths) if n]
        kind = plain(key.kind)
        some = f"{kind}/{layers[0]}/0 to {kind}/{layers[-1]}/{key.widths[layers[-1]] - 1}" if layers else "none"
        raise UsageError("No such feature", f"The atlas in '{self.folder}' has no {plain(str(feature))}.", f"It has features from {some}.")

    def _row(self, side: Side, feature: FeatureId) -> _Row:
        if not self._finished and not (self.folder / table_name(side, feature.layer)).exists():
            return _NOT_BEGUN
        with self._opened(side, feature.layer) as (descriptor, header):
            raw = {name: _numbers(descriptor, header, name, feature.index, self.manifest.key.top) for name in COLUMNS}
            counts = {name: _count(descriptor, header, name, feature.index) for name in COUNTS}
        found = tuple(zip(*(raw[name] for name in ("layer", "index", "virtual_weight", "era", "twera", "n_coactive")), strict=True))
        top, n_tokens = self.manifest.key.top, self.manifest.key.n_tokens
        if not 0 <= counts["n_firing"] <= n_tokens or counts["n_unsupported"] < 0:
            raise damaged(header.path, f"feature {feature.index} fires on {counts['n_firing']} of {n_tokens} tokens, by its numbers")
        return _Row(
            positive=tuple(self._neighbours(found[:top], header)),
            negative=tuple(self._neighbours(found[top:], header)),
            n_firing=counts["n_firing"],
            n_unsupported=counts["n_unsupported"],
            merged=tuple(sorted(header.merged)),
        )

    def _neighbours(self, found: Sequence[_Found], header: Header) -> Iterator[AtlasNeighbour]:
        for row in found:
            layer, index, virtual_weight, era, twera, n_coactive = row
            if layer != NONE:  # places that nothing fills come last
                self._refuse_impossible(row, header)
                other = FeatureId(self.manifest.key.kind, int(layer), int(index))
                seen = read_label(self.folder, other.layer, other.index)
                yield AtlasNeighbour(
                    feature=other, virtual_weight=virtual_weight, era=era, twera=twera, n_coactive=int(n_coactive), label=seen
                )

    def _refuse_impossible(self, row: _Found, header: Header) -> None:
        """Make sure that a neighbour is one that the atlas can have."""
        layer, index, *values, n_coactive = row
        if layer not in header.merged:
            raise damaged(header.path, f"it has a neighbour of layer {layer}, but none of that layer is merged into it")
        if not 0 <= index < self.manifest.key.widths[int(layer)]:
            raise damaged(header.path, f"it has the neighbour {index} of layer {layer}, which has {self.manifest.key.widths[int(layer)]}")
        if not all(map(math.isfinite, values)) or n_coactive < 0:
            raise damaged(header.path, f"the numbers of its neighbour {index} of layer {layer} make no sense")

    def _refuse_merged(self, side: Side, layer: int, header: Header) -> None:
        """Make sure that a table holds layers of its side and, once the atlas is finished, all of them."""
        layers = [other for other, width in enumerate(self.manifest.key.widths) if width]
        expected = {other for other in layers if (other > layer if side == "source" else other < layer)}
        if not header.merged <= expected or (self._finished and header.merged != expected):
            raise damaged(header.path, f"layers {_listed(header.merged)} are merged into it, expected {_listed(expected)}")

    @contextmanager
    def _opened(self, side: Side, layer: int) -> Iterator[tuple[int, Header]]:
        path, key = self.folder / table_name(side, layer), self.manifest.key
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise damaged(path, f"it cannot be read: {error.strerror}") from error
        try:
            header = read_header(descriptor, path, key.widths[layer], key.top)
            if header.key != digest(key):
                raise damaged(path, "it belongs to another atlas than the manifest beside it")
            self._refuse_merged(side, layer, header)
            yield descriptor, header
        finally:
            os.close(descriptor)


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"


def _numbers(descriptor: int, header: Header, name: str, index: int, top: int) -> tuple[float, ...]:
    """A feature's row of a tensor, (2 · top,)."""
    _, letter, size = COLUMNS[name]
    length = 2 * top * size
    raw = os.pread(descriptor, length, header.begins[name] + index * length)
    if len(raw) != length:
        raise damaged(header.path, f"the row of feature {index} in '{name}' is cut off")
    return struct.unpack(f"<{2 * top}{letter}", raw)


def _count(descriptor: int, header: Header, name: str, index: int) -> int:
    _, letter, size = COUNTS[name]
    raw = os.pread(descriptor, size, header.begins[name] + index * size)
    if len(raw) != size:
        raise damaged(header.path, f"the number of feature {index} in '{name}' is cut off")
    return int(struct.unpack(f"<{letter}", raw)[0])
