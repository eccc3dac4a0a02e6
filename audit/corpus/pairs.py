"""Co-activations of a few candidates with every feature of later layers, as sums over tokens; only pairs that fire together are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix

from audit.corpus.fixed import FixedSums, fixed_sums


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairSums:
    """One row a candidate and target that fire together, by candidate, layer and index of the target."""

    candidate: NDArray[np.int32]
    """(n,) its place among the candidates."""
    layer: NDArray[np.int32]
    """(n,) of the target."""
    index: NDArray[np.int32]
    """(n,) of the target in its layer."""
    n_coactive: NDArray[np.int64]
    """(n,) tokens on which both fire, ≥ 1."""
    weighted: FixedSums
    """(n,) sum of a_j · a_i, over sigma where the target reads divided: the numerator of TWERA."""
    gated: FixedSums
    """(n,) sum of 1(a_j > 0) · a_i, over sigma likewise: the numerator of ERA."""

    @classmethod
    def none(cls) -> PairSums:
        """No pairs."""
        names = np.zeros(0, dtype=np.int32)
        return cls(
            candidate=names,
            layer=names,
            index=names,
            n_coactive=np.zeros(0, dtype=np.int64),
            weighted=FixedSums.zeros(0),
            gated=FixedSums.zeros(0),
        )

    def of(self, candidate: int, layer: int) -> PairSums:
        """Those of one candidate and one target layer."""
        return self._at(np.flatnonzero((self.candidate == candidate) & (self.layer == layer)))

    def merged(self, other: PairSums) -> PairSums:
        """Sums over the tokens of both."""
        return joined([self, other])

    def _at(self, places: NDArray[np.intp]) -> PairSums:
        return PairSums(
            candidate=self.candidate[places],
            layer=self.layer[places],
            index=self.index[places],
            n_coactive=self.n_coactive[places],
            weighted=self.weighted.at(places),
            gated=self.gated.at(places),
        )


def joined(parts: Sequence[PairSums]) -> PairSums:
    """Sums over the tokens of all parts."""
    parts = [part for part in parts if len(part.candidate)]
    if not parts:
        return PairSums.none()
    chained = PairSums(
        candidate=np.concatenate([part.candidate for part in parts]),
        layer=np.concatenate([part.layer for part in parts]),
        index=np.concatenate([part.index for part in parts]),
        n_coactive=np.concatenate([part.n_coactive for part in parts]),
        weighted=_chained([part.weighted for part in parts]),
        gated=_chained([part.gated for part in parts]),
    )
    one = chained._at(np.lexsort((chained.index, chained.layer, chained.candidate)))
    new = np.ones(len(one.candidate), dtype=bool)
    new[1:] = (np.diff(one.candidate) != 0) | (np.diff(one.layer) != 0) | (np.diff(one.index) != 0)
    starts = np.flatnonzero(new)
    return PairSums(
        candidate=one.candidate[starts],
        layer=one.layer[starts],
        index=one.index[starts],
        n_coactive=np.add.reduceat(one.n_coactive, starts),
        weighted=one.weighted.grouped(starts),
        gated=one.gated.grouped(starts),
    )


def _chained(parts: Sequence[FixedSums]) -> FixedSums:
    return FixedSums(whole=np.concatenate([part.whole for part in parts]), units=np.concatenate([part.units for part in parts]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flow:
    """Where one candidate fires."""

    rows: NDArray[np.int32]
    """(n,) tokens, in order."""
    values: NDArray[np.float64]
    """(n,) its activation there, > 0."""

    @classmethod
    def of(cls, layer: csc_matrix, index: int) -> Flow:
        """That of a feature of a layer, from (n_tokens, n_features) activations > 0."""
        span = slice(layer.indptr[index], layer.indptr[index + 1])
        return cls(rows=layer.indices[span], values=layer.data[span].astype(np.float64))


def layer_pairs(candidate: int, layer: int, flow: Flow, targets: csr_matrix, sigma: NDArray[np.float32] | None) -> PairSums:
    """Co-activations of one candidate with the features of one later layer.

    Args:
        candidate: its place among the candidates.
        layer: of the targets.
        flow: where the candidate fires.
        targets: (n_tokens, n_features) activations > 0.
        sigma: (n_tokens,) norm denominators at the targets' site, or None.
    """
    n = targets.shape[1]
    starts = targets.indptr[flow.rows].astype(np.int64)
    lengths = targets.indptr[flow.rows + 1] - starts
    entries = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
    columns = targets.indices[entries]
    reached = flow.values if sigma is None else flow.values / sigma[flow.rows].astype(np.float64)
    carried = np.repeat(reached, lengths)
    n_coactive = np.bincount(columns, minlength=n).astype(np.int64)
    kept = np.flatnonzero(n_coactive)
    return PairSums(
        candidate=np.full(len(kept), candidate, dtype=np.int32),
        layer=np.full(len(kept), layer, dtype=np.int32),
        index=kept.astype(np.int32),
        n_coactive=n_coactive[kept],
        weighted=fixed_sums(targets.data[entries] * carried, columns, n).at(kept),
        gated=fixed_sums(carried, columns, n).at(kept),
    )


def all_pairs(candidates: Sequence[tuple[int, int]], layers: Sequence[csr_matrix], sigma: NDArray[np.float32] | None) -> Iterator[PairSums]:
    """Co-activations of every candidate with every later layer.

    Args:
        candidates: (layer, index) of each.
        layers: (n_tokens, n_features) activations > 0 a layer of the model.
        sigma: (n_tokens, ≥ n_layers) norm denominators, or None where targets do not read divided.
    """
    columns = {layer: layers[layer].tocsc() for layer in {layer for layer, _ in candidates}}
    for place, (source, index) in enumerate(candidates):
        flow = Flow.of(columns[source], index)
        for layer in range(source + 1, len(layers)):
            if layers[layer].shape[1]:
                yield layer_pairs(place, layer, flow, layers[layer], None if sigma is None else sigma[:, layer])
