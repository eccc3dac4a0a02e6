"""How the features of two blocks fire together, by sparse products: nothing is computed for features that never do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from audit.atlas.tiles import Indices

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sources:
    """Activations of a block of sources."""

    flow: sparse.csr_matrix
    """(R, n_tokens) float64 a_i / sigma of the target's layer."""
    fires: sparse.csr_matrix
    """(R, n_tokens) int32 ones, at the same places."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """Activations of a block of targets."""

    values: sparse.csr_matrix
    """(n_tokens, C) complex128 a_j + 1i."""
    fires: sparse.csr_matrix
    """(n_tokens, C) int32 ones, at the same places."""
    total: Floats
    """(C,) sum of a_j."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """The supported pairs of a tile, row by row."""

    row: NDArray[np.int32]
    """(n,) source, its place in the block."""
    column: NDArray[np.int32]
    """(n,) target, its place in the block."""
    expected: Floats
    """(n,) E[a_j a_i / sigma] / E[a_j]."""
    gated: Floats
    """(n,) sum of 1(a_j > 0) · a_i / sigma."""
    n_coactive: NDArray[np.int32]
    """(n,)"""


def by_feature(layer: sparse.csr_matrix) -> sparse.csc_matrix:
    """Activations of a layer, (n_tokens, n_features), feature by feature and without stored zeros; a copy."""
    found = layer.tocsc(copy=True)
    found.eliminate_zeros()
    return found


def sources(layer: sparse.csc_matrix, block: Indices, sigma: NDArray[np.float32] | None) -> Sources:
    """A block of sources.

    Args:
        layer: (n_tokens, n_features) from ``by_feature``.
        block: features.
        sigma: (n_tokens,) norm denominators at the targets' site, or None.
    """
    chosen = layer[:, block].T
    values = chosen.data.astype(np.float64)
    if sigma is not None:
        values /= sigma[chosen.indices]
    return Sources(flow=_with(chosen, values), fires=_with(chosen, np.ones(len(values), dtype=np.int32)))


def targets(layer: sparse.csc_matrix, block: Indices) -> Targets:
    """A block of targets, from (n_tokens, n_features) as ``by_feature`` gives them."""
    picked = layer[:, block]
    total = np.add.reduceat(np.append(picked.data, 0).astype(np.float64), picked.indptr[:-1])  # each fires: no span is empty
    chosen = picked.tocsr()
    values = np.empty(len(chosen.data), dtype=np.complex128)
    values.real, values.imag = chosen.data, 1.0
    return Targets(values=_with(chosen, values), fires=_with(chosen, np.ones(len(values), dtype=np.int32)), total=total)


def meet(some: Sources, others: Targets, support: int) -> tuple[Cells, NDArray[np.int64]]:
    """Pairs that fire together on ``support`` tokens or more, and how many of each source's pairs do on fewer, (R,).

    One complex product gives both sums over tokens: real parts a_i · a_j, imaginary parts a_i. Sums run over tokens in order, whatever
    the tile.
    """
    counted = some.fires @ others.fires
    enough = counted.data >= support
    row = np.repeat(np.arange(counted.shape[0], dtype=np.int32), np.diff(counted.indptr))
    n_unsupported = np.bincount(row[~enough], minlength=counted.shape[0])
    row, column, n_coactive = row[enough], counted.indices[enough], counted.data[enough]
    del counted
    summed = (some.flow @ others.values).data[enough]  # the structure of the product is that of the counts
    cells = Cells(row=row, column=column, expected=summed.real / others.total[column], gated=summed.imag.copy(), n_coactive=n_coactive)
    return cells, n_unsupported


def n_meeting(some: Sources, others: Targets) -> NDArray[np.int64]:
    """With how many targets each source fires together, (R,)."""
    counts: NDArray[np.int64] = np.diff((some.fires @ others.fires).indptr).astype(np.int64)
    return counts


def _with(pattern: sparse.csr_matrix, values: NDArray[np.generic]) -> sparse.csr_matrix:
    return sparse.csr_matrix((values, pattern.indices, pattern.indptr), shape=pattern.shape)
