"""ERA and TWERA: virtual weights weighted by how strongly both ends fire together.

``ERA = E[1(a_j > 0) · a_i] · V_ij`` and ``TWERA = E[a_j a_i] / E[a_j] · V_ij``, same token for i and j (Ameisen et al. 2025, "Circuit
Tracing", global weights). Every downstream feature of every later layer is a target; targets that co-fire with the source on fewer
tokens than the cut-off are counted, never ranked. ``layer_weights`` gives all weights between two layers, ``strongest_targets`` the
strongest of many sources in one pass over the encoders.

Blind spots: a target that the source switches off does not co-fire with it; effects through attention or of several hops are not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.connections import coactivation, virtual_weights
from audit.connections.coactivation import Coactivation, Firing, Floats, Targets
from audit.connections.virtual_weights import Panel
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary
from audit.subject.matrix import Matrix

LOUDEST = 1e-4
"""Share of a source's targets, by |V|, among which those that never fire with it are counted."""
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
    typical_virtual_weight: float
    """Root mean square of the source's virtual weights on all features of the target's layer."""


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
class _Found:
    """What is known of one source's targets so far."""

    source: FeatureId
    firing: Firing
    top: int
    support: int
    n_loudest: int
    """Targets among which those that never fire with the source are counted: ``LOUDEST`` of all."""
    kept: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, dtype=ROW))
    n_unsupported: int = 0
    loudest: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """Largest |V| so far."""
    silent: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """Whether those never fire with the source."""
    squares: dict[int, float] = field(default_factory=dict)
    """Target layer → sum of V²."""
    widths: dict[int, int] = field(default_factory=dict)
    """Target layer → targets summed."""

    @property
    def weakest(self) -> float:
        """|TWERA| that a target must reach."""
        return float(abs(self.kept["twera"][-1])) if len(self.kept) == self.top else 0.0

    def keep(self, rows: NDArray[np.void]) -> None:
        """Merge targets into those kept."""
        if len(rows):
            both = np.concatenate([self.kept, rows])
            self.kept = both[np.lexsort((both["index"], both["layer"], -np.abs(both["twera"])))][: self.top]

    def count(self, layer: int, size: NDArray[np.float32], n_coactive: NDArray[np.intp]) -> None:
        """Take in |V| on neighbouring targets, (P,), and the tokens on which each fires with the source, (P,)."""
        self.n_unsupported += int(np.count_nonzero((n_coactive > 0) & (n_coactive < self.support)))
        self.squares[layer] = self.squares.get(layer, 0.0) + float(size @ size)
        self.widths[layer] = self.widths.get(layer, 0) + len(size)
        floor = self.loudest.min() if len(self.loudest) == self.n_loudest else -1.0
        louder = np.flatnonzero(size > floor)
        sizes = np.concatenate([self.loudest, size[louder]])
        silent = np.concatenate([self.silent, n_coactive[louder] == 0])
        if len(sizes) > self.n_loudest:
            order = np.argpartition(-sizes, self.n_loudest - 1)[: self.n_loudest]
            sizes, silent = sizes[order], silent[order]
        self.loudest, self.silent = sizes, silent

    def result(self, kind: str) -> Strongest:
        """All of it."""
        return Strongest(
            source=self.source,
            edges=tuple(self._edge(kind, row) for row in self.kept),
            n_unsupported=self.n_unsupported,
            n_never_coactive=int(np.count_nonzero(self.silent)),
        )

    def _edge(self, kind: str, row: np.void) -> Edge:
        layer = int(row["layer"])
        return Edge(
            target=FeatureId(kind, layer, int(row["index"])),
            virtual_weight=float(row["virtual"]),
            era=float(row["era"]),
            twera=float(row["twera"]),
            n_coactive=int(row["n_coactive"]),
            target_frequency=float(row["frequency"]),
            typical_virtual_weight=float(np.sqrt(self.squares[layer] / self.widths[layer])),
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
        _Found(source=source, firing=firing[source], top=top, support=support, n_loudest=math.ceil(LOUDEST * n_targets[source.layer]))
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
        size = np.abs(self.panel.virtual[row])
        meeting = coactivation.meet(flow, self.some)
        found.count(self.layer, size, meeting.n_coactive)
        supported = np.flatnonzero(meeting.n_coactive >= max(found.support, 1))
        slack = self.panel.rounding[row] * self.panel.encoder_norm[supported]
        bound = flow.values.max(initial=0.0) * (size[supported] + slack)
        near = bound * WIDER >= found.weakest
        columns, slack = supported[near], slack[near]
        if not len(columns):
            return np.zeros(0, dtype=ROW)
        weighted, gated = meeting.sums(columns)
        expected = weighted / self.some.total[columns]
        may = _may_lead(expected * size[columns], expected * slack, found.weakest, found.top)
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
