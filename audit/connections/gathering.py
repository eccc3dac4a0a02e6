"""What is known of a source's targets while they are looked through, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from audit.connections.coactivation import Firing
from audit.connections.twera import Edge
from audit.records import FeatureId

SHOWN = 8
"""Targets shown a source of those that are not ranked: the strongest below the cut-off, the largest |V| of what never fires with it."""
ROW = np.dtype(
    [
        ("source", np.int64),
        ("layer", np.int64),
        ("index", np.int64),
        ("virtual", np.float64),
        ("era", np.float64),
        ("twera", np.float64),
        ("n_coactive", np.int64),
        ("frequency", np.float64),
    ]
)
"""One target of a source, before it is an ``Edge``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strongest:
    """What one source feeds."""

    source: FeatureId
    edges: tuple[Edge, ...]
    """Largest |TWERA| first."""
    n_unsupported: int
    """Targets that fire together with the source, but on fewer tokens than the cut-off."""
    n_never_coactive: int
    """Those of the ``LOUDEST`` targets by |V| that never fire together with the source."""
    unsupported: tuple[Edge, ...] = ()
    """The strongest of the unsupported, largest |TWERA| first."""
    never_coactive: tuple[FeatureId, ...] = ()
    """Those, largest |V| first."""
    typical: Mapping[int, float] = field(default_factory=dict)
    """Target layer → root mean square of the source's virtual weights on all its features."""


@dataclass(slots=True, kw_only=True, eq=False)
class Kept:
    """The strongest targets so far."""

    top: int
    rows: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=ROW))

    @property
    def weakest(self) -> float:
        """|TWERA| that a target must reach."""
        return float(abs(self.rows["twera"][-1])) if len(self.rows) == self.top else 0.0

    def merge(self, rows: NDArray[np.void]) -> None:
        """Take in more targets."""
        if len(rows):
            both = _joined(self.rows, rows)
            self.rows = both[np.lexsort((both["index"], both["layer"], -np.abs(both["twera"])))][: self.top]


@dataclass(slots=True, kw_only=True, eq=False)
class Found:
    """What is known of one source's targets so far."""

    source: FeatureId
    firing: Firing
    support: int
    n_loudest: int
    """Targets among which those that never fire with the source are counted: ``LOUDEST`` of all."""
    ranked: Kept
    unsupported: Kept
    n_unsupported: int = 0
    loudest: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=ROW))
    """Targets with the largest |V| so far, largest first."""
    heard: list[NDArray[np.void]] = field(default_factory=list)
    """More that may be among them."""
    squares: dict[int, float] = field(default_factory=dict)
    """Target layer → sum of V²."""
    widths: dict[int, int] = field(default_factory=dict)
    """Target layer → targets summed."""

    def keep(self, rows: NDArray[np.void]) -> None:
        """Merge targets into those kept."""
        enough = rows["n_coactive"] >= self.support
        self.ranked.merge(rows[enough])
        self.unsupported.merge(rows[~enough])

    @property
    def floor(self) -> float:
        """|V| that a target must reach to be among the loudest, as far as is known; −1 as long as there is room."""
        return float(abs(self.loudest["virtual"][-1])) if len(self.loudest) == self.n_loudest else -1.0

    def hear(self, rows: NDArray[np.void]) -> None:
        """Take in targets with a large |V|."""
        self.heard.append(rows)
        if sum(map(len, self.heard)) >= self.n_loudest:
            self._settle()

    def _settle(self) -> None:
        both = np.concatenate([self.loudest, *self.heard])
        self.loudest = both[np.lexsort((both["index"], both["layer"], -np.abs(both["virtual"])))][: self.n_loudest]
        self.heard.clear()

    def result(self, kind: str) -> Strongest:
        """All of it."""
        self._settle()
        silent = self.loudest[self.loudest["n_coactive"] == 0]
        return Strongest(
            source=self.source,
            edges=tuple(self._edge(kind, row) for row in self.ranked.rows),
            n_unsupported=self.n_unsupported,
            n_never_coactive=len(silent),
            unsupported=tuple(self._edge(kind, row) for row in self.unsupported.rows),
            never_coactive=tuple(FeatureId(kind, int(row["layer"]), int(row["index"])) for row in silent),
            typical={layer: float(np.sqrt(square / self.widths[layer])) for layer, square in self.squares.items()},
        )

    def _edge(self, kind: str, row: np.void) -> Edge:
        return Edge(
            target=FeatureId(kind, int(row["layer"]), int(row["index"])),
            virtual_weight=float(row["virtual"]),
            era=float(row["era"]),
            twera=float(row["twera"]),
            n_coactive=int(row["n_coactive"]),
            target_frequency=float(row["frequency"]),
        )


def _joined(first: NDArray[np.void], second: NDArray[np.void]) -> NDArray[np.void]:
    """One after the other; ``np.concatenate`` spends most of its time on comparing the fields' types."""
    both = np.empty(len(first) + len(second), dtype=ROW)
    both[: len(first)], both[len(first) :] = first, second
    return both
