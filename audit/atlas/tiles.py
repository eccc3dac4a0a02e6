"""How a pair of layers is cut into tiles, so that a build stays within its memory.

Of the memory, in bytes, what every pair needs is taken off first (``fixed``): the tables of both layers, their activations by feature, and
8 a token. With B left,

- sums of decoders are kept from target layer to target layer if they take at most B/4: 8 · active sources · d_model; else they are added
  up again for every tile;
- of what is then left, B', a block of sources takes at most B'/4, at ``48 · d_model + 40 · tokens on which it fires + 128 · top`` a source,
  and a block of targets as much, at ``16 · d_model + 48 · tokens + 128 · top`` a target;
- a tile takes at most B'/2, at 144 a pair of features, as many as if every pair fired together. Blocks of sources are at most as long as
  makes a tile square, blocks of targets take what is left;
- what is computed in float64 and offered to the tables at once takes at most B'/8 each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.atlas.layout import NEIGHBOUR_BYTES
from audit.errors import UsageError

CELL = 144
"""Bytes a pair of features of a tile: its virtual weight, the sums over tokens, and what is derived from them."""
EXACT = 64
"""Virtual weights computed in float64 at once at most: with their rows they stay in the cache."""
OFFERED = 160
"""Bytes a pair of features that is offered to the tables."""
SUM = 8
"""Bytes an element of a sum of decoders."""
RANKED = 128
"""Bytes a neighbour that is kept, while a row is merged."""
ACTIVATION = 8
"""Bytes of an activation, by feature."""
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What decides the memory of a pair of layers."""

    sources: NDArray[np.int64]
    """(n_features,) tokens on which each feature of the earlier layer fires."""
    targets: NDArray[np.int64]
    """(n_features,) those of the later layer."""
    n_tokens: int
    d_model: int
    top: int
    support: int

    @property
    def fixed(self) -> int:
        """Bytes that every tile needs beside its own."""
        n_features = len(self.sources) + len(self.targets)
        # A table is there twice while a tensor of its file is written.
        tables = n_features * (2 * self.top * 2 * NEIGHBOUR_BYTES + 64)
        return int(tables + ACTIVATION * (self.sources.sum() + self.targets.sum()) + 8 * self.n_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Blocks of features; every pair of a block of sources and one of targets is a tile."""

    sources: tuple[Indices, ...]
    """Features that fire on as many tokens as the cut-off asks or more, in order."""
    targets: tuple[Indices, ...]
    rare_sources: tuple[Indices, ...]
    """Features that fire on fewer tokens, but on some."""
    rare_targets: tuple[Indices, ...]
    carried: bool
    """Sums of decoders are kept."""
    n_exact: int
    """Virtual weights computed in float64 at once."""
    n_offered: int
    """Pairs of features offered to the tables at once."""


def tiling(load: Load, memory_bytes: int) -> Tiling:
    """Cut a pair of layers.

    Raises:
        UsageError: not even one source and one target fit.
    """
    rows = 48 * load.d_model + 40 * load.sources + RANKED * load.top
    columns = 16 * load.d_model + 48 * load.targets + RANKED * load.top
    active, rare = _split(load.sources, load.support)
    sums = SUM * load.d_model * len(active)
    left = memory_bytes - load.fixed
    carried = 0 < 4 * sums <= left
    left -= sums if carried else 0
    needed = 4 * int(max(rows.max(initial=0), columns.max(initial=0), CELL))
    if left < needed:
        raise _too_small(memory_bytes, load.fixed + needed)
    cells = left // (2 * CELL)
    target_active, target_rare = _split(load.targets, load.support)
    side = math.isqrt(cells)
    sources = _blocks(active, rows, left // 4, side)
    longest = max((len(block) for block in sources), default=side)
    rare_sources = _blocks(rare, rows, left // 4, longest)
    return Tiling(
        sources=sources,
        targets=_blocks(target_active, columns, left // 4, max(1, cells // longest)),
        rare_sources=rare_sources,
        rare_targets=_blocks(target_rare, columns, left // 4, max(1, cells // longest)),
        carried=carried,
        n_exact=max(1, min(EXACT, left // 8 // (24 * load.d_model))),
        n_offered=max(1, left // 8 // OFFERED),
    )


def _split(n_firing: NDArray[np.int64], support: int) -> tuple[Indices, Indices]:
    """Features that may have a supported neighbour, and the others that fire. Exact, since n_ij ≤ min(n_i, n_j)."""
    return np.flatnonzero(n_firing >= support), np.flatnonzero((n_firing > 0) & (n_firing < support))


def _blocks(chosen: Indices, costs: NDArray[np.int64], most_bytes: int, most: int) -> tuple[Indices, ...]:
    """Neighbouring features, as many as cost ``most_bytes`` together, ``most`` at most and one at least."""
    total, found, start = np.concatenate([[0], np.cumsum(costs[chosen])]), [], 0
    while start < len(chosen):
        stop = int(np.searchsorted(total, total[start] + most_bytes, side="right")) - 1
        stop = max(start + 1, min(stop, start + most))
        found.append(chosen[start:stop])
        start = stop
    return tuple(found)


def _too_small(memory_bytes: int, needed: int) -> UsageError:
    return UsageError(
        "The memory budget is too small",
        f"{memory_bytes:,} bytes do not hold one tile of the largest layers, which take {needed:,}.",
        f"Give --memory {math.ceil(needed * 1.1 / 1e6)}MB or more; a tile grows with it, and with it the speed.",
    )


def refuse_too_small(loads: Sequence[Load], memory_bytes: int) -> None:
    """Make sure that every pair of layers can be cut, before the first is begun.

    Raises:
        UsageError: one cannot.
    """
    for load in sorted(loads, key=lambda load: -load.fixed):
        tiling(load, memory_bytes)
