"""What every pair of layers of a build needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audit.atlas import layout
from audit.atlas.manifest import Pair
from audit.atlas.table import Table
from audit.atlas.tiles import Load
from audit.events import Observer
from audit.records.atlas import AtlasKey
from audit.subject import Subject
from audit.subject.activations import TokenActivations


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """Of one build."""

    subject: Subject
    activations: TokenActivations
    folder: Path
    key: AtlasKey
    digest: str
    firing: tuple[NDArray[np.int64], ...]
    """(n_features,) tokens on which each feature fires, one a layer."""
    memory_bytes: int
    device: torch.device
    observer: Observer

    def load(self, pair: Pair) -> Load:
        """What decides the memory of a pair."""
        return Load(
            sources=self.firing[pair[0]],
            targets=self.firing[pair[1]],
            n_tokens=self.activations.n_tokens,
            d_model=self.subject.dictionary.d_model,
            top=self.key.top,
            support=self.key.support,
        )

    def n_active(self, layer: int) -> int:
        """Features that fire on as many tokens as the cut-off asks or more."""
        return int(np.count_nonzero(self.firing[layer] >= self.key.support))

    def table(self, side: layout.Side, layer: int) -> Table:
        """A table as it is on disk."""
        return Table.load(self.folder, side, layer, (self.key.widths[layer], self.key.top))
