"""What the features of one layer have written to the residual stream by the time that a later layer reads it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit.atlas.tiles import Indices
from audit.subject.dictionary import Dictionary


@dataclass(slots=True, kw_only=True, eq=False)
class Sums:
    """Running sums of decoders, for target layers that rise.

    A sum is made in float64 by adding slices in the order of layers, whether it is kept or made again.
    """

    dictionary: Dictionary
    layer: int
    """Of the features."""
    _features: Indices | None = field(init=False, default=None)
    _kept: Tensor | None = field(init=False, default=None)
    _next: int = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is written yet."""
        self._next = self.layer

    def keep(self, blocks: tuple[Indices, ...], target_layer: int) -> None:
        """Bring the kept sums of some features up to a target layer: the same features each time.

        Args:
            blocks: features that are read at once.
            target_layer: not below that of the call before.
        """
        starts = [0]
        for block in blocks:
            starts.append(starts[-1] + len(block))
        if self._kept is None:
            self._kept = torch.zeros(starts[-1], self.dictionary.d_model, dtype=torch.float64)
        for block, start in zip(blocks, starts, strict=False):
            self._add(self._kept[start : start + len(block)], block, range(self._next, target_layer))
        self._next = target_layer

    def drop(self) -> None:
        """Keep nothing any more."""
        self._kept, self._next = None, self.layer

    def of(self, block: Indices, start: int, target_layer: int) -> Tensor:
        """Sums of a block of features, (n, d_model) float64; not to be changed.

        Args:
            block: features.
            start: place of the first among those that are kept.
            target_layer: the layers before it are summed.
        """
        if self._kept is not None:
            return self._kept[start : start + len(block)]
        fresh = torch.zeros(len(block), self.dictionary.d_model, dtype=torch.float64)
        self._add(fresh, block, range(self.layer, target_layer))
        return fresh

    def _add(self, total: Tensor, block: Indices, layers: range) -> None:
        W_dec = self.dictionary.at(self.layer).W_dec
        for layer in layers:
            if layer - self.layer < W_dec.shape[1]:
                total += W_dec.rows(torch.from_numpy(block), out=layer - self.layer)
