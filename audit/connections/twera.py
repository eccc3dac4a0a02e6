"""ERA and TWERA: virtual weights weighted by how strongly both ends fire together.

``ERA = E[1(a_j > 0) · a_i] · V_ij`` and ``TWERA = E[a_j a_i] / E[a_j] · V_ij``, same token for i and j (Ameisen et al. 2025, "Circuit
Tracing", global weights). Every downstream feature of every later layer is a target; targets that co-fire with the source on fewer
tokens than the cut-off are counted, never ranked. ``layer_weights`` gives all weights between two layers, ``strongest_targets`` the
strongest of many sources in one pass over the encoders.

Blind spots: a target that the source switches off does not co-fire with it; effects through attention or of several hops are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.connections import coactivation, virtual_weights
from audit.connections.coactivation import Coactivation, Firing, Floats, Meeting, Targets
from audit.connections.virtual_weights import Panel
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary
from audit.subject.matrix import Matrix

LOUDEST = 1e-4
"""Share of a source's targets, by |V|, among which those that never fire with it are counted."""
SHOWN = 8
"""Targets kept a source of those that are not ranked: the strongest below the cut-off, the largest |V| of those that never fire with it."""
WIDER = 1 + 1e-9
"""By which bounds are widened, for the rounding of sums over tokens."""
ROW = np.dtype(
    [
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
Told = Callable[[int, int, int], None]
"""Called with (layers done, layers in all, the layer that comes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Connection weights of S sources on the F targets of one layer."""

    virtual: Floats
    """(S, F)."""
    era: Floats
    """(S, F)."""
    twera: Floats
    """(S, F); 0 where the target never fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """One connection, before its target is described."""

    target: FeatureId
    virtual_weight: float
    era: float
    twera: float
    n_coactive: int
    target_frequency: float


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
    """The strongest of those that never fire together with the source, largest |V| first."""
    typical: Mapping[int, float] = field(default_factory=dict)
    """Target layer → root mean square of the source's virtual weights on all its features."""


def weigh(virtual: Floats, coactive: Coactivation) -> Weights:
    """ERA and TWERA from virtual weights (S, F) and co-activation sums of the same shape."""
    expected = np.divide(coactive.weighted, coactive.target_sum, out=np.zeros_like(coactive.weighted), where=coactive.target_sum > 0)
    return Weights(virtual=virtual, era=coactive.gated / max(coactive.n_tokens, 1) * virtual, twera=expected * virtual)


def denominators(dictionary: Dictionary, activations: TokenActivations, target_layer: int) -> NDArray[np.float32] | None:
    """(n_tokens,) frozen norm denominators at the targets' site, or None when the dictionary reads the plain residual stream."""
    if not virtual_weights.reading(dictionary).divided:
        return None
    return np.asarray(activations.sigma[:, target_layer])


def layer_weights(
    subject: Subject, activations: TokenActivations, sources: Sequence[FeatureId], target_layer: int
) -> tuple[Weights, Coactivation]:
    """Weights of sources of one layer on every feature of a later layer, with the sums that they come from."""
    dictionary = subject.dictionary
    norm = subject.model.mlp_norm(target_layer) if virtual_weights.reading(dictionary).divided else None
    virtual = virtual_weights.rows(dictionary, sources, target_layer, norm).numpy()
    columns = activations.layers[sources[0].layer][:, [source.index for source in sources]]
    coactive = coactivation.sums(columns, activations.layers[target_layer], denominators(dictionary, activations, target_layer))
    return weigh(virtual, coactive), coactive


def strongest_targets(
    subject: Subject,
    activations: TokenActivations,
    sources: Sequence[FeatureId],
    *,
    top: int,
    support: int,
    device: torch.device | None = None,
    told: Told | None = None,
) -> tuple[Strongest, ...]:
    """The strongest supported targets of all sources, over the features of all later layers.

    One pass: the encoders of a layer are read once and multiplied by the decoders of all sources of earlier layers, whatever their
    layers. Beside the activations, memory holds one block of encoders, one panel of virtual weights (``virtual_weights.panels``), and
    ``top`` targets a source.

    ``|TWERA_ij| ≤ max(a_i / sigma) · |V_ij|``, so that the activations of a target are summed only where that reaches the weakest target
    kept so far. Bounds allow for rounding, and what is kept is computed again in float64, so that nothing is lost.

    Args:
        subject: model and dictionary.
        activations: of the corpus; its content tokens are what the expectations run over.
        sources: features of any layers, in any order.
        top: targets kept a source, by |TWERA|, largest first; ties by layer and index.
        support: fewest tokens on which source and target must fire together.
        device: that multiplies; the CPU by default.
        told: called before each layer; may raise to stop.

    Returns:
        One a source, in their order.
    """
    dictionary = subject.dictionary
    later = [layer for layer in dictionary.present if any(source.layer < layer for source in sources)]
    found = _begun(dictionary, activations, sources, top, support)
    written = virtual_weights.Written(dictionary=dictionary, sources=sources)
    for done, layer in enumerate(later):
        if told is not None:
            told(done, len(later), layer)
        active = [place for place, source in enumerate(sources) if source.layer < layer]
        norm = subject.model.mlp_norm(layer) if virtual_weights.reading(dictionary).divided else None
        directions = virtual_weights.read_through(dictionary, written.before(layer)[active], norm)
        sigma, whole = denominators(dictionary, activations, layer), coactivation.targets(activations.layers[layer])
        flows = [found[place].firing.over(sigma) for place in active]
        for panel in virtual_weights.panels(dictionary.at(layer).W_enc, directions, device):
            some = coactivation.part(whole, panel.start, panel.start + len(panel.encoder_norm))
            sift = _Sift(panel=panel, some=some, layer=layer, n_tokens=activations.n_tokens)
            chosen = [sift.chosen(found[place], flow, row) for row, (place, flow) in enumerate(zip(active, flows, strict=True))]
            for place, rows in zip(active, _exact(dictionary.at(layer).W_enc, directions, chosen), strict=True):
                found[place].keep(rows)
    return tuple(each.result(dictionary.kind) for each in found)


def source_edges(
    subject: Subject, activations: TokenActivations, sources: Sequence[FeatureId], *, top: int, support: int
) -> Iterator[tuple[FeatureId, tuple[Edge, ...], int]]:
    """``strongest_targets`` as (source, its edges, how many targets co-fired on fewer tokens than ``support``)."""
    for each in strongest_targets(subject, activations, sources, top=top, support=support):
        yield each.source, each.edges, each.n_unsupported


@dataclass(slots=True, kw_only=True, eq=False)
class _Kept:
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
            both = np.concatenate([self.rows, rows])
            self.rows = both[np.lexsort((both["index"], both["layer"], -np.abs(both["twera"])))][: self.top]


@dataclass(slots=True, kw_only=True, eq=False)
class _Found:
    """What is known of one source's targets so far."""

    source: FeatureId
    firing: Firing
    support: int
    n_loudest: int
    """Targets among which those that never fire with the source are counted: ``LOUDEST`` of all."""
    ranked: _Kept
    unsupported: _Kept
    n_unsupported: int = 0
    loudest: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=ROW))
    """Targets with the largest |V| so far."""
    squares: dict[int, float] = field(default_factory=dict)
    """Target layer → sum of V²."""
    widths: dict[int, int] = field(default_factory=dict)
    """Target layer → targets summed."""

    def keep(self, rows: NDArray[np.void]) -> None:
        """Merge targets into those kept."""
        enough = rows["n_coactive"] >= self.support
        self.ranked.merge(rows[enough])
        self.unsupported.merge(rows[~enough])

    def count(self, first: tuple[int, int], virtual: NDArray[np.float32], meeting: Meeting) -> None:
        """Take in V on neighbouring targets, (P,), from the layer and the index of the first on, and how each meets the source."""
        layer, start = first
        self.n_unsupported += int(np.count_nonzero((meeting.n_coactive > 0) & (meeting.n_coactive < self.support)))
        self.squares[layer] = self.squares.get(layer, 0.0) + float(virtual @ virtual)
        self.widths[layer] = self.widths.get(layer, 0) + len(virtual)
        size = np.abs(virtual)
        floor = np.abs(self.loudest["virtual"]).min() if len(self.loudest) == self.n_loudest else -1.0
        louder = np.flatnonzero(size > floor)
        if len(louder) > self.n_loudest:
            louder = louder[np.argpartition(-size[louder], self.n_loudest - 1)[: self.n_loudest]]
        rows = np.zeros(len(louder), dtype=ROW)
        rows["layer"], rows["index"], rows["virtual"] = layer, start + louder, virtual[louder]
        rows["n_coactive"] = meeting.n_coactive[louder]
        rows["frequency"] = meeting.targets.n_firing[louder] / meeting.targets.matrix.shape[0]
        both = np.concatenate([self.loudest, rows])
        self.loudest = both[np.lexsort((both["index"], both["layer"], -np.abs(both["virtual"])))][: self.n_loudest]

    def result(self, kind: str) -> Strongest:
        """All of it."""
        silent = self.loudest[self.loudest["n_coactive"] == 0]
        return Strongest(
            source=self.source,
            edges=tuple(self._edge(kind, row) for row in self.ranked.rows),
            n_unsupported=self.n_unsupported,
            n_never_coactive=len(silent),
            unsupported=tuple(self._edge(kind, row) for row in self.unsupported.rows),
            never_coactive=tuple(FeatureId(kind, int(row["layer"]), int(row["index"])) for row in silent[:SHOWN]),
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


def _begun(
    dictionary: Dictionary, activations: TokenActivations, sources: Sequence[FeatureId], top: int, support: int
) -> tuple[_Found, ...]:
    firing: dict[FeatureId, Firing] = {}
    for layer in {source.layer for source in sources}:
        own = [source for source in sources if source.layer == layer]
        firing |= zip(own, coactivation.firings(activations.layers[layer], [source.index for source in own]), strict=True)
    n_targets = {source.layer: sum(dictionary.widths[source.layer + 1 :]) for source in sources}
    return tuple(
        _Found(
            source=source,
            firing=firing[source],
            support=support,
            n_loudest=math.ceil(LOUDEST * n_targets[source.layer]),
            ranked=_Kept(top=top),
            unsupported=_Kept(top=SHOWN),
        )
        for source in sources
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sift:
    """Which targets of a panel may be among a source's strongest."""

    panel: Panel
    some: Targets
    layer: int
    n_tokens: int

    def chosen(self, found: _Found, flow: Firing, row: int) -> NDArray[np.void]:
        """Those of one source, (n,) of ``ROW``; V is still to be filled in: ERA and TWERA are given for V = 1.

        Args:
            found: the source; takes in what is counted over all targets.
            flow: its activation over the norm denominator.
            row: of the panel.
        """
        virtual = self.panel.virtual[row]
        meeting = coactivation.meet(flow, self.some)
        found.count((self.layer, self.panel.start), virtual, meeting)
        n_coactive = meeting.n_coactive
        parts = []
        for kept, some in (
            (found.ranked, n_coactive >= max(found.support, 1)),
            (found.unsupported, (n_coactive > 0) & (n_coactive < found.support)),
        ):
            columns = np.flatnonzero(some)
            slack = self.panel.rounding[row] * self.panel.encoder_norm[columns]
            bound = flow.values.max(initial=0.0) * (np.abs(virtual[columns]) + slack)
            near = bound * WIDER >= kept.weakest
            if near.any():
                parts.append(self._rows(kept, meeting, columns[near], (np.abs(virtual[columns[near]]), slack[near])))
        return np.concatenate([np.zeros(0, dtype=ROW), *parts])

    def _rows(self, kept: _Kept, meeting: Meeting, columns: NDArray[np.intp], size: tuple[Floats, Floats]) -> NDArray[np.void]:
        """Those of some targets that may be kept; ``size`` is their |V| and the rounding in it."""
        weighted, gated = meeting.sums(columns)
        expected = weighted / self.some.total[columns]
        may = _may_lead(expected * size[0], expected * size[1], kept.weakest, kept.top)
        rows = np.zeros(len(may), dtype=ROW)
        rows["layer"], rows["index"], rows["virtual"] = self.layer, self.panel.start + columns[may], 1.0
        rows["era"], rows["twera"] = gated[may] / self.n_tokens, expected[may]
        rows["n_coactive"], rows["frequency"] = meeting.n_coactive[columns[may]], self.some.n_firing[columns[may]] / self.n_tokens
        return rows


def _may_lead(size: Floats, slack: Floats, weakest: float, top: int) -> NDArray[np.intp]:
    """Which sizes, known up to their slack, may reach ``weakest`` and be among the ``top`` largest."""
    low, high = size - slack, (size + slack) * WIDER
    floor = weakest if len(low) <= top else max(weakest, float(np.partition(low, len(low) - top)[len(low) - top]))
    return np.flatnonzero(high >= floor)


def _exact(W_enc: Matrix, directions: Tensor, chosen: Sequence[NDArray[np.void]]) -> list[NDArray[np.void]]:
    """Chosen targets with their virtual weights, from float64 products; every encoder is read once for all sources.

    Args:
        W_enc: (n_features, d_in) encoders of the targets' layer.
        directions: (S, d_in) float64, what the sources have written.
        chosen: targets of each source, with ERA and TWERA for V = 1.
    """
    flat = np.concatenate([np.zeros(0, dtype=ROW), *chosen])
    owner = np.repeat(np.arange(len(chosen)), [len(rows) for rows in chosen])
    flat["virtual"] = virtual_weights.pairs(W_enc, directions, owner, flat["index"])
    flat["era"] *= flat["virtual"]
    flat["twera"] *= flat["virtual"]
    return np.split(flat, np.cumsum([len(rows) for rows in chosen])[:-1])
