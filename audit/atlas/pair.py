"""One pair of layers: tiles of virtual weights and of sums over tokens, and what of them enters the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from audit.atlas import cells, sifting, tiles
from audit.atlas.manifest import Pair
from audit.atlas.sums import Sums
from audit.atlas.table import ENTRY, Table
from audit.atlas.tiles import Indices, Tiling
from audit.atlas.work import Work
from audit.connections import twera, virtual_weights
from audit.connections.virtual_weights import UNIT_ROUNDOFF
from audit.events import check_stop


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Into:
    """The tables that a pair is merged into."""

    sources: Table | None
    """None where it was merged before."""
    targets: Table | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerPair:
    """One pair of layers."""

    work: Work
    layers: Pair
    earlier: sparse.csc_matrix
    later: sparse.csc_matrix
    sums: Sums
    into: Into
    cut: Tiling
    sigma: NDArray[np.float32] | None

    @classmethod
    def of(cls, work: Work, layers: Pair, earlier: sparse.csc_matrix, sums: Sums, into: Into) -> LayerPair:
        """Cut it, and bring the sums of decoders up to its target layer."""
        cut = tiles.tiling(work.load(layers), work.memory_bytes)
        if cut.carried:
            sums.keep(cut.sources, layers[1])
        else:
            sums.drop()
        sigma = twera.denominators(work.subject.dictionary, work.activations, layers[1])
        later = cells.by_feature(work.activations.layers[layers[1]])
        return cls(work=work, layers=layers, earlier=earlier, later=later, sums=sums, into=into, cut=cut, sigma=sigma)

    def run(self) -> None:
        """All tiles, a block of targets at a time."""
        for block in self.cut.targets:
            self._targets(block)
        for block in self.cut.rare_targets:
            self._count((*self.cut.sources, *self.cut.rare_sources), cells.targets(self.later, block))

    def _targets(self, block: Indices) -> None:
        """A block of targets that fire often enough, against all sources."""
        some = cells.targets(self.later, block)
        encoders = self.work.subject.dictionary.at(self.layers[1]).W_enc.rows(torch.from_numpy(block))
        start = 0
        for sources in self.cut.sources:
            check_stop(self.work.observer)
            self._tile((sources, start), (block, encoders), some)
            start += len(sources)
        self._count(self.cut.rare_sources, some)

    def _count(self, blocks: Sequence[Indices], some: cells.Targets) -> None:
        """Sources and targets of which one fires on fewer tokens than the cut-off asks: they can only be unsupported."""
        if self.into.sources is None:
            return
        for sources in blocks:
            self.into.sources.n_unsupported[sources] += cells.n_meeting(cells.sources(self.earlier, sources, None), some)

    def _tile(self, sources: tuple[Indices, int], targets: tuple[Indices, Tensor], some: cells.Targets) -> None:
        """Offer the strongest pairs of a block of sources, from its place on, and a block of targets with their encoders."""
        met, n_unsupported = cells.meet(cells.sources(self.earlier, sources[0], self.sigma), some, self.work.key.support)
        if self.into.sources is not None:
            self.into.sources.n_unsupported[sources[0]] += n_unsupported
        if not len(met.row):
            return
        directions = self.directions(*sources)
        chosen = self._sifted(met, (sources[0], targets[0]), directions, targets[1])
        for some_chosen in _parts(chosen, self.cut.n_offered):
            virtual = exact(directions, targets[1], (met.row[some_chosen], met.column[some_chosen]), self.cut.n_exact)
            self._offer(met, some_chosen, (sources[0], targets[0]), virtual)

    def directions(self, block: Indices, start: int) -> Tensor:
        """What a block of sources has written, as the target layer's encoders multiply it: (R, d_model) float64."""
        subject = self.work.subject
        norm = subject.model.mlp_norm(self.layers[1]) if virtual_weights.reading(subject.dictionary).divided else None
        return virtual_weights.read_through(subject.dictionary, self.sums.of(block, start, self.layers[1]), norm)

    def _sifted(self, met: cells.Cells, blocks: tuple[Indices, Indices], directions: Tensor, encoders: Tensor) -> NDArray[np.intp]:
        """Supported pairs that may be among the strongest of either end."""
        virtual, rounding, norms = multiplied(directions, encoders.to(self.work.device))
        estimate = virtual[met.row, met.column] * met.expected
        slack = rounding[met.row] * norms[met.column] * met.expected
        ends = []
        if self.into.sources is not None:
            ends.append(sifting.Ends(place=met.row, floor=self.into.sources.floor[blocks[0]]))
        if self.into.targets is not None:
            ends.append(sifting.Ends(place=met.column, floor=self.into.targets.floor[blocks[1]]))
        return sifting.may_lead(estimate, slack, tuple(ends), self.work.key.top)

    def _offer(self, met: cells.Cells, chosen: NDArray[np.intp], blocks: tuple[Indices, Indices], virtual: cells.Floats) -> None:
        """Offer some pairs, with their virtual weights, to both tables."""
        sources, index = blocks[0][met.row[chosen]], blocks[1][met.column[chosen]]
        found = np.empty(len(chosen), dtype=ENTRY)
        found["virtual_weight"], found["twera"] = virtual, met.expected[chosen] * virtual
        found["era"] = met.gated[chosen] / self.work.key.n_tokens * virtual
        found["n_coactive"] = met.n_coactive[chosen]
        if self.into.sources is not None:
            found["layer"], found["index"] = self.layers[1], index
            self.into.sources.offer(sources, found)
        if self.into.targets is not None:
            found["layer"], found["index"] = self.layers[0], sources
            self.into.targets.offer(index, found)


def multiplied(directions: Tensor, encoders: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float32]]:
    """Virtual weights (R, C) in float32; (R,) and (C,) by whose product each may be wrong."""
    virtual = torch.mm(directions.float().to(encoders.device), encoders.T).cpu().numpy()
    # The length of a sum bounds its rounding, whatever its order; 2 more for the rounding of the sources and of the norm.
    rounding = (encoders.shape[1] + 2) * UNIT_ROUNDOFF * (1 + 1e-3) * directions.norm(dim=1).numpy()
    return virtual, rounding, torch.linalg.vector_norm(encoders, dim=1).cpu().numpy()


def exact(directions: Tensor, encoders: Tensor, ends: tuple[NDArray[np.int32], NDArray[np.int32]], most: int) -> cells.Floats:
    """Virtual weights of n pairs in float64, each summed by itself: it does not depend on the others.

    Args:
        directions: (R, d_model) float64.
        encoders: (C, d_model) float32.
        ends: (n,) rows of ``directions``, which rise, and (n,) rows of ``encoders``.
        most: pairs computed at once.
    """
    left, right, (row, column) = directions.numpy(), encoders.numpy(), ends
    found = np.empty(len(row))
    changes = (np.flatnonzero(np.diff(row)) + 1).tolist()
    for start, stop in zip([0, *changes], [*changes, len(row)], strict=True):
        for first in range(start, stop, most):
            some = slice(first, min(first + most, stop))
            found[some] = np.einsum("nd,d->n", right[column[some]].astype(np.float64), left[row[first]])
    return found


def _parts(chosen: NDArray[np.intp], most: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(chosen), most):
        yield chosen[start : start + most]
