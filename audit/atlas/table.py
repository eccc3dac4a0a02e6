"""The strongest neighbours found so far of every feature of a layer, and their file.

Order: by size of TWERA as it is stored, in float32, largest first; ties by layer and index. That is a total order, so that what is kept
does not depend on the order in which neighbours are offered.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audit.atlas import layout, manifest
from audit.atlas.layout import COLUMNS, COUNTS, Side

ENTRY = np.dtype([("virtual_weight", "<f4"), ("era", "<f4"), ("twera", "<f4"), ("index", "<i4"), ("n_coactive", "<i4"), ("layer", "<i2")])
"""One neighbour; layer −1 where there is none."""
EMPTY = np.array((0, 0, 0, -1, 0, -1), dtype=ENTRY)
SIGNS = (1, -1)
"""Of the TWERA in the first and in the second half of a row."""


@dataclass(slots=True, kw_only=True, eq=False)
class Table:
    """Targets of a layer's features, or their sources."""

    entries: NDArray[np.void]
    """(n_features, 2, top) of ``ENTRY``: positive and negative TWERA, strongest first, then empty ones."""
    n_firing: NDArray[np.int64]
    """(n_features,) tokens on which each fires."""
    n_unsupported: NDArray[np.int64]
    """(n_features,) others that fire together with it on too few tokens; counted for sources."""
    merged: frozenset[int] = frozenset()
    """Layers whose features are in it."""
    floor: NDArray[np.float32] = field(init=False)
    """(n_features, 2) size of the weakest TWERA kept, 0 where there is room."""

    def __post_init__(self) -> None:
        """Derive the floor."""
        self.floor = _floor(self.entries)

    @classmethod
    def empty(cls, n_firing: NDArray[np.int64], top: int) -> Table:
        """Without neighbours."""
        n = len(n_firing)
        return cls(entries=np.full((n, 2, top), EMPTY), n_firing=n_firing.astype(np.int64), n_unsupported=np.zeros(n, dtype=np.int64))

    def offer(self, owner: NDArray[np.intp], rows: NDArray[np.void]) -> None:
        """Keep those that are among the strongest of their owners.

        Args:
            owner: (n,) features of this layer.
            rows: (n,) of ``ENTRY``, a neighbour of each; none of them offered before.
        """
        for half, sign in enumerate(SIGNS):
            size = sign * rows["twera"]
            near = np.flatnonzero((size > 0) & (size >= self.floor[owner, half]))
            if len(near):
                self._keep(half, owner[near], rows[near])

    def _keep(self, half: int, owner: NDArray[np.intp], rows: NDArray[np.void]) -> None:
        touched = np.unique(owner)
        before = self.entries[touched, half]  # (U, top)
        filled = before["layer"] >= 0
        both = np.concatenate([before[filled], rows])
        whose = np.searchsorted(touched, np.concatenate([np.repeat(touched, filled.sum(axis=1)), owner]))
        order = np.lexsort((both["index"], both["layer"], -np.abs(both["twera"]), whose))
        counts = np.bincount(whose, minlength=len(touched))
        rank = np.arange(len(both)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, rank = order[rank < before.shape[1]], rank[rank < before.shape[1]]
        after = np.full(before.shape, EMPTY)
        after[whose[order], rank] = both[order]
        self.entries[touched, half] = after
        self.floor[touched, half] = _floor(after)

    def save(self, folder: Path, side: Side, layer: int, key: str) -> None:
        """Replace the layer's file at once; after a crash it is there as it was or as it is now.

        Args:
            folder: of the atlas.
            side: of the table.
            layer: of its features.
            key: digest of the atlas's key.
        """
        path = folder / layout.table_name(side, layer)
        written = path.with_name(f".{path.name}.part")
        n_features, _, top = self.entries.shape
        with written.open("wb") as stream:
            stream.write(layout.header_bytes(n_features, top, self.merged, key))
            for counts in (self.n_firing, self.n_unsupported):
                stream.write(np.ascontiguousarray(counts, dtype="<i8").data)
            for name in COLUMNS:
                stream.write(np.ascontiguousarray(self.entries[name]).data)
            stream.flush()
            os.fsync(stream.fileno())
        written.replace(path)
        manifest.sync(folder)

    @classmethod
    def load(cls, folder: Path, side: Side, layer: int, shape: tuple[int, int]) -> Table:
        """A layer's file.

        Args:
            folder: of the atlas.
            side: of the table.
            layer: of its features.
            shape: features of the layer, and neighbours kept a sign.

        Raises:
            UsageError: the file is damaged.
        """
        n_features, top = shape
        path = folder / layout.table_name(side, layer)
        entries = np.full((n_features, 2, top), EMPTY)
        with path.open("rb") as stream:
            header = layout.read_header(stream.fileno(), path, n_features, top)
            for name in COLUMNS:
                stream.seek(header.begins[name])
                entries[name] = np.fromfile(stream, ENTRY[name], entries.size).reshape(entries.shape)
            stream.seek(header.begins["n_firing"])
            n_firing, n_unsupported = (np.fromfile(stream, "<i8", n_features) for _ in COUNTS)
        return cls(entries=entries, n_firing=n_firing, n_unsupported=n_unsupported, merged=header.merged)


def _floor(entries: NDArray[np.void]) -> NDArray[np.float32]:
    """Size of the weakest that is kept, along the last dimension; 0 where there is room."""
    last = entries[..., -1]
    return np.where(last["layer"] >= 0, np.abs(last["twera"]), np.float32(0))
