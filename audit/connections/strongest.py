"""The strongest targets of many sources at once: one pass over the encoders, whatever the number of sources.

Of every target of every later layer its virtual weight is computed; what costs more is done only where it can matter. Targets that
co-fire with the source on fewer tokens than the cut-off are counted and shown apart, never ranked.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.connections import coactivation, virtual_weights
from audit.connections.coactivation import Firing, Floats, Meeting, Targets
from audit.connections.gathering import ROW, SHOWN, Found, Kept, Strongest
from audit.connections.twera import denominators
from audit.connections.virtual_weights import Panel
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary
from audit.subject.matrix import Matrix

LOUDEST = 1e-4
"""Share of a source's targets, by |V|, among which those that never fire with it are counted."""
MAKERS = 4
"""Threads that multiply: with more, sums over tokens take longer than products."""
TOGETHER = 1 << 19
"""Pairs of a source and a target, and of their activations, that are looked through at once."""
MOST = 4096
"""Sources that are looked through at once, of any number of targets."""
WIDER = 1 + 1e-9
"""By which bounds are widened, for the rounding of sums over tokens."""
Told = Callable[[int, int, int], None]
"""Called with (layers done, layers in all, the layer that comes)."""


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
    layers. Beside the activations, memory holds, for each thread, one block of encoders and one panel of virtual weights
    (``virtual_weights.panels``), and ``top`` targets a source.

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
    with closing(_made(_multiplied(subject, sources, later, device), device)) as panels:
        for layer, group in groupby(panels, key=lambda made: made[0].layer):
            if told is not None:
                told(later.index(layer), len(later), layer)
            sigma, whole = denominators(dictionary, activations, layer), coactivation.targets_of(activations, layer)
            active = [each for each in found if each.source.layer < layer]
            flows = [each.firing.over(sigma) for each in active]
            for part, panel in group:
                some = coactivation.part(whole, panel.start, panel.start + len(panel.encoder_norm))
                sift = _Sift(panel=panel, size=np.abs(panel.virtual), some=some, layer=layer, n_tokens=activations.n_tokens)
                rows = [sift.chosen(active[picked], flows[picked], picked.start) for picked in _groups(flows, some)]
                exact = _exact(dictionary.at(layer).W_enc, part.directions, np.concatenate(rows))
                for place, own in enumerate(np.split(exact, np.searchsorted(exact["source"], np.arange(1, len(active))))):
                    active[place].keep(own)
    return tuple(each.result(dictionary.kind) for each in found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Multiplied:
    """Virtual weights of the sources of earlier layers on neighbouring targets of one layer, to be made."""

    layer: int
    directions: Tensor
    """(S, d_in) float64: what the sources have written."""
    make: Callable[[], Panel]


def _multiplied(subject: Subject, sources: Sequence[FeatureId], later: Sequence[int], device: torch.device | None) -> Iterator[_Multiplied]:
    """All virtual weights, layer by layer."""
    dictionary = subject.dictionary
    written = virtual_weights.Written(dictionary=dictionary, sources=sources)
    for layer in later:
        active = [place for place, source in enumerate(sources) if source.layer < layer]
        norm = subject.model.mlp_norm(layer) if virtual_weights.reading(dictionary).divided else None
        directions = virtual_weights.read_through(dictionary, written.before(layer)[active], norm)
        for make in virtual_weights.panels(dictionary.at(layer).W_enc, directions, device):
            yield _Multiplied(layer=layer, directions=directions, make=make)


def _made(parts: Iterator[_Multiplied], device: torch.device | None) -> Generator[tuple[_Multiplied, Panel], None, None]:
    """The same with their panels, in order; while one is looked through, threads make the next ones.

    Looking through a panel takes about as long as making it, and cannot be divided. So products are made by threads of one core each,
    where the library would divide every product among all cores and wait for the slowest.
    """
    threads = torch.get_num_threads()
    n = min(threads, MAKERS)
    if n == 1 or (device is not None and device.type != "cpu"):
        yield from ((part, part.make()) for part in parts)
        return
    torch.set_num_threads(threads // n)  # of this thread, and of those that begin from now on
    try:
        with ThreadPoolExecutor(n) as pool:
            coming = deque((part, pool.submit(part.make)) for part in islice(parts, n))
            while coming:
                part, making = coming.popleft()
                panel = making.result()
                coming.extend((later, pool.submit(later.make)) for later in islice(parts, 1))
                yield part, panel
    finally:
        torch.set_num_threads(threads)


def _begun(
    dictionary: Dictionary, activations: TokenActivations, sources: Sequence[FeatureId], top: int, support: int
) -> tuple[Found, ...]:
    firing: dict[FeatureId, Firing] = {}
    for layer in {source.layer for source in sources}:
        own = [source for source in sources if source.layer == layer]
        firing |= zip(own, coactivation.firings(activations.layers[layer], [source.index for source in own]), strict=True)
    n_targets = {source.layer: sum(dictionary.widths[source.layer + 1 :]) for source in sources}
    return tuple(
        Found(
            source=source,
            firing=firing[source],
            support=support,
            n_loudest=math.ceil(LOUDEST * n_targets[source.layer]),
            ranked=Kept(top=top),
            unsupported=Kept(top=SHOWN),
        )
        for source in sources
    )


def _groups(flows: Sequence[Firing], some: Targets) -> Iterator[slice]:
    """Neighbouring sources that are looked through together, so that a call works on much and the cache still holds it."""
    n_tokens, width = some.matrix.shape
    a_token, start, met = some.matrix.nnz / max(n_tokens, 1), 0, 0.0
    for place, flow in enumerate(flows):
        more = a_token * len(flow.rows)
        n = place - start
        if n and (n == MOST or (n + 1) * width > TOGETHER or met + more > TOGETHER):
            yield slice(start, place)
            start, met = place, 0.0
        met += more
    if flows:
        yield slice(start, len(flows))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sift:
    """Which targets of a panel may be among the strongest of some sources."""

    panel: Panel
    size: NDArray[np.float32]
    """(S, P): |V|."""
    some: Targets
    layer: int
    n_tokens: int

    def chosen(self, found: Sequence[Found], flows: Sequence[Firing], first: int) -> NDArray[np.void]:
        """Those targets, (n,) of ``ROW``, source by source; V is still to be filled in: ERA and TWERA are given for V = 1.

        Args:
            found: neighbouring sources; they take in what is counted over all targets.
            flows: their activations over the norm denominator.
            first: row of the first one in the panel.
        """
        meeting = coactivation.meet(flows, self.some)
        n_coactive, sizes = meeting.n_coactive.ravel(), self.size[first : first + len(found)]
        self._count(found, first, meeting)
        places, owner, column = _where(meeting.n_coactive > 0)
        enough = n_coactive[places] >= np.array([each.support for each in found])[owner]
        for each, n_unsupported in zip(found, np.bincount(owner[~enough], minlength=len(found)), strict=True):
            each.n_unsupported += int(n_unsupported)
        size, slack = sizes.ravel()[places], self.panel.rounding[first + owner] * self.panel.encoder_norm[column]
        weakest = np.array([(each.unsupported.weakest, each.ranked.weakest) for each in found])[owner, enough.astype(np.intp)]
        peak = np.array([flow.values.max(initial=0.0) for flow in flows])[owner]
        near = np.flatnonzero(peak * (size + slack) * WIDER >= weakest)
        places, owner, column, enough = places[near], owner[near], column[near], enough[near]
        weighted, gated = meeting.sums(places)
        expected = weighted / self.some.total[column]
        top = np.array([(each.unsupported.top, each.ranked.top) for each in found])[owner, enough.astype(np.intp)]
        low, high = expected * (size[near] - slack[near]), expected * (size[near] + slack[near]) * WIDER
        may = _may_lead(low, high, weakest[near], (owner * 2 + enough).astype(np.int16), top)
        rows = np.zeros(len(may), dtype=ROW)
        rows["source"], rows["layer"], rows["index"], rows["virtual"] = first + owner[may], self.layer, self.panel.start + column[may], 1.0
        rows["era"], rows["twera"], rows["n_coactive"] = gated[may] / self.n_tokens, expected[may], n_coactive[places[may]]
        rows["frequency"] = self.some.n_firing[column[may]] / self.n_tokens
        return rows

    def _count(self, found: Sequence[Found], first: int, meeting: Meeting) -> None:
        """Let sources take in V² and the targets with the largest |V|."""
        picked = slice(first, first + len(found))
        virtual, size = self.panel.virtual[picked], self.size[picked]
        for each, square in zip(found, np.square(np.linalg.norm(virtual, axis=1).astype(np.float64)), strict=True):
            each.squares[self.layer] = each.squares.get(self.layer, 0.0) + float(square)
            each.widths[self.layer] = each.widths.get(self.layer, 0) + size.shape[1]
        floors = np.array([each.floor if each.floor >= 0 else _largest(row, each.n_loudest) for each, row in zip(found, size, strict=True)])
        _, owner, column = _where(size >= floors[:, None].astype(np.float32))
        rows = np.zeros(len(owner), dtype=ROW)
        rows["layer"], rows["index"], rows["virtual"] = self.layer, self.panel.start + column, virtual[owner, column]
        rows["n_coactive"], rows["frequency"] = meeting.n_coactive[owner, column], self.some.n_firing[column] / self.n_tokens
        for each, own in zip(found, np.split(rows, np.searchsorted(owner, np.arange(1, len(found)))), strict=True):
            if len(own):
                each.hear(own)


def _where(true: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Places in a matrix, (S, P), that are true, counted row by row, their rows and their columns; quicker than ``np.nonzero``."""
    places = np.flatnonzero(true)
    row = np.repeat(np.arange(len(true)), np.count_nonzero(true, axis=1))
    return places, row, places - row * true.shape[1]


def _largest(values: NDArray[np.float32], n: int) -> float:
    """The n-th largest; −1 where there are not as many."""
    return -1.0 if len(values) < n else float(np.partition(values, len(values) - n)[len(values) - n])


def _may_lead(low: Floats, high: Floats, floor: Floats, group: NDArray[np.int16], top: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which sizes, known to lie between two bounds, may reach their floor and be among the ``top`` largest of their group; in order.

    Args:
        low: (n,).
        high: (n,).
        floor: (n,) the same in a group, like ``top``.
        group: (n,) any number.
        top: (n,).
    """
    if not len(low):
        return np.zeros(0, dtype=np.intp)
    order = np.argsort(group, kind="stable")  # a radix sort, for numbers this short
    low, floor, top, group = low[order], floor[order], top[order], group[order]
    starts = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
    ends = np.append(starts[1:], len(low))
    least = floor[starts]
    for k, (start, end, n) in enumerate(zip(starts, ends, top[starts], strict=True)):
        if end - start > n:
            least[k] = max(least[k], np.partition(low[start:end], end - start - n)[end - start - n])
    return np.sort(order[high[order] >= np.repeat(least, ends - starts)])


def _exact(W_enc: Matrix, directions: Tensor, rows: NDArray[np.void]) -> NDArray[np.void]:
    """Targets with their virtual weights, from float64 products; every encoder is read once for all sources.

    Args:
        W_enc: (n_features, d_in) encoders of the targets' layer.
        directions: (S, d_in) float64, what the sources have written.
        rows: of all sources, with ERA and TWERA for V = 1.
    """
    rows["virtual"] = virtual_weights.pairs(W_enc, directions, rows["source"], rows["index"])
    rows["era"] *= rows["virtual"]
    rows["twera"] *= rows["virtual"]
    return rows
