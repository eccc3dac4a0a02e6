"""Weights that stay on disk: a matrix is mapped into memory, and only the rows that are asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.errors import SubjectError

BLOCK_ELEMENTS = 1 << 25
"""Elements turned into float32 at once, 128 MiB: bounds the memory on wide dictionaries."""
Rows = slice | Sequence[int] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A weight matrix with one row a feature, in the dtype and order that it has on disk; rows come out as float32."""

    tensor: Tensor
    """(n_rows, width) or (n_rows, n_out, width); a view of a mapped file, transposed where the file has it the other way."""
    where: str
    """Tensor and file, for errors."""
    scale: Tensor | None = None
    """(n_rows,) or () float32, by which rows are multiplied: a factor that the format keeps beside the matrix."""
    _finite: set[int] = field(init=False, default_factory=set, repr=False)
    """Starts of the blocks that were found to hold finite numbers."""
    row_norms: dict[tuple[int, int], Tensor] = field(init=False, default_factory=dict, repr=False)
    """Rows from … up to … → their norms, (n,) float32, where someone has computed them; all of them are finite."""

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of ``tensor``."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """On disk."""
        return self.tensor.dtype

    def rows(self, index: Rows, *, out: int | None = None, device: torch.device | None = None) -> Tensor:
        """Some rows as float32, (n, width) or (n, n_out, width).

        Args:
            index: which.
            out: only this slice of the second of three dimensions.
            device: where to; the CPU by default.

        Raises:
            SubjectError: they hold numbers that are not finite.
        """
        picked = index if isinstance(index, slice) else torch.as_tensor(index, dtype=torch.long)
        found = self._float(picked, self.tensor[picked] if out is None else self.tensor[picked, out], device)
        self._refuse_not_finite(found)
        return found

    def row(self, index: int, *, device: torch.device | None = None) -> Tensor:
        """One row as float32, (width,) or (n_out, width)."""
        return self.rows(slice(index, index + 1), device=device)[0]

    def blocks(self, *, device: torch.device | None = None) -> Iterator[tuple[int, Tensor]]:
        """All rows, a block at a time.

        Yields:
            (first row, (n, width) or (n, n_out, width) float32).

        Raises:
            SubjectError: a block holds numbers that are not finite.
        """
        step = max(1, BLOCK_ELEMENTS // max(1, self.tensor[:1].numel()))
        for start in range(0, len(self.tensor), step):
            picked = slice(start, start + step)
            block = self._float(picked, self.tensor[picked], device)
            if start not in self._finite:
                self._refuse_not_finite(block)
                self._finite.add(start)
            yield start, block

    def norms(self) -> Tensor:
        """Norm of each row over all its other dimensions, (n_rows,) float64."""
        norms = [block.double().flatten(1).norm(dim=1).cpu() for _, block in self.blocks()]
        return torch.cat([torch.zeros(0, dtype=torch.float64), *norms])

    def _float(self, picked: slice | Tensor, found: Tensor, device: torch.device | None) -> Tensor:
        wide = found.to(device).float()
        if self.scale is None:
            return wide
        scale = (self.scale[picked] if self.scale.ndim else self.scale).to(wide.device)
        return wide * (scale.view(-1, *[1] * (wide.ndim - 1)) if scale.ndim else scale)

    def _refuse_not_finite(self, rows: Tensor) -> None:
        if not bool(rows.isfinite().all()):
            raise SubjectError(
                "The dictionary is damaged", f"{self.where} holds numbers that are not finite.", "Copy or download the dictionary again."
            )
