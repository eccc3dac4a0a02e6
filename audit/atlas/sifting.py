"""Which pairs of a tile may be among the strongest of their source or of their target, before they are computed exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.atlas.cells import Floats
from audit.atlas.table import SIGNS

WIDER = 1 + 1e-6
"""By which bounds are widened: sizes are compared after they are rounded to float32."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ends:
    """One end of each of the n pairs of a tile."""

    place: NDArray[np.int32]
    """(n,) feature, its place in the block."""
    floor: NDArray[np.float32]
    """(block, 2) size of the weakest positive and negative TWERA that each feature keeps so far, 0 where it has room."""


def may_lead(estimate: Floats, slack: Floats, ends: tuple[Ends, ...], top: int) -> NDArray[np.intp]:
    """Pairs whose TWERA may be among the ``top`` largest or the ``top`` most negative of one of their ends.

    Nothing that belongs there is lost: a pair is left out only where its upper bound is below what the end keeps already, or below
    the lower bounds of ``top`` others of this tile.

    Args:
        estimate: (n,) TWERA.
        slack: (n,) by which it may be wrong.
        ends: those whose neighbours are wanted.
        top: neighbours kept a sign.
    """
    lead = np.zeros(len(estimate), dtype=bool)
    for half, sign in enumerate(SIGNS):
        high = (sign * estimate + slack) * WIDER
        for end in ends:
            near = np.flatnonzero((high > 0) & (high >= end.floor[end.place, half]))
            low, place = sign * estimate[near] - slack[near], end.place[near]
            lead[near[high[near] >= _kth_largest(place, low, len(end.floor), top)[place]]] = True
    return np.flatnonzero(lead)


def _kth_largest(place: NDArray[np.int32], values: Floats, n: int, top: int) -> Floats:
    """The ``top``-th largest value of each of n groups, (n,); minus infinity for a group that has no more than ``top``.

    Args:
        place: (m,) group of each value.
        values: (m,)
        n: groups.
        top: which.
    """
    found = np.full(n, -np.inf)
    counts = np.bincount(place, minlength=n)
    crowded = np.flatnonzero(counts > top)
    if not len(crowded):
        return found
    chosen = np.flatnonzero(counts[place] > top)
    chosen = chosen[np.argsort(place[chosen].astype(np.uint16) if n <= 1 << 16 else place[chosen], kind="stable")]  # 16 bits: radix sort
    counts = counts[crowded]
    padded = np.full((len(crowded), int(counts.max())), -np.inf)
    padded[np.arange(padded.shape[1]) < counts[:, np.newaxis]] = values[chosen]
    padded.partition(padded.shape[1] - top, axis=1)
    found[crowded] = padded[:, -top]
    return found
