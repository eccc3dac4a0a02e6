"""Virtual weights: what one unit of a source feature adds, through the residual stream alone, to a target's encoder.

``V_ij = < sum_{l_i <= l < l_j} W_dec[i, l - l_i] , W_enc[j] >``: decoders from the source's layer inclusive to the target's layer
exclusive (Ameisen et al. 2025, "Circuit Tracing", global weights). A per-layer transcoder has one decoder, hence one term.

A dictionary that reads a normalised stream sees ``gain * x / sigma``. The gain is constant and belongs to the encoder, so it is in V; the
denominator changes from token to token and belongs inside the expectation, so it is in ``coactivation``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import SubjectError
from audit.records import FeatureId
from audit.subject.architecture import NAMES
from audit.subject.dictionary import Dictionary
from audit.subject.matrix import Matrix
from audit.subject.norms import Norm

BLOCK_ELEMENTS = 1 << 20
"""Encoder elements multiplied at once, 4 MiB of float32: a block is still in the cache when the product reads it."""
PANEL_ELEMENTS = 1 << 25
"""Virtual weights held at once, 128 MiB of float32: bounds the memory for many sources on wide layers."""
UNIT_ROUNDOFF = 2.0**-24
"""Of float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How an input hook sees the residual stream that the decoders write to."""

    gained: bool
    """The norm's gain multiplies what the encoder reads."""
    divided: bool
    """The norm's denominator divides it, token by token."""


READINGS = {
    "resid_pre": Reading(gained=False, divided=False),
    "resid_mid": Reading(gained=False, divided=False),
    "mlp_in": Reading(gained=True, divided=True),
    "mlp_in_unweighted": Reading(gained=False, divided=True),
    "resid_post": Reading(gained=False, divided=False),
}
ADDED = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
"""Hook points where what a decoder writes arrives in the residual stream as it is."""


def reading(dictionary: Dictionary) -> Reading:
    """How the dictionary's encoders see the residual stream.

    Raises:
        SubjectError: they read a site for which the virtual weight is not defined here.
    """
    # A cross-layer feature that is read behind where it writes also reaches the layer it writes to, which the sum leaves out.
    behind = dictionary.kind == "clt" and NAMES.index(dictionary.input_hook) > NAMES.index(dictionary.output_hook)
    if dictionary.input_hook in READINGS and dictionary.output_hook in ADDED and not behind:
        return READINGS[dictionary.input_hook]
    raise SubjectError(
        "No virtual weights for this dictionary",
        f"It reads '{dictionary.input_hook}' and writes '{dictionary.output_hook}': the one is no fixed linear map of the other.",
        f"Use a dictionary that reads one of {', '.join(READINGS)} and writes one of {', '.join(ADDED)}.",
    )


def written(dictionary: Dictionary, source: FeatureId, target_layer: int) -> Tensor:
    """What one unit of ``source`` has added to the residual stream when layer ``target_layer`` reads it.

    Returns:
        (d_model,) float64 on the CPU: the sum of its decoders to the layers before ``target_layer``.
    """
    decoder = dictionary.decoder(source)  # (n_out, d_model), first row writes to the source's own layer
    return decoder[: target_layer - source.layer].double().sum(dim=0)


def rows(dictionary: Dictionary, sources: Sequence[FeatureId], target_layer: int, norm: Norm | None = None) -> Tensor:
    """Virtual weights of some sources on every feature of one later layer.

    Args:
        dictionary: the decoders and the encoders.
        sources: features of layers below ``target_layer``.
        target_layer: layer of the targets.
        norm: that the target layer's MLP reads through, or None when the encoders read the plain stream. The mean is taken out
            where it does that, and its gain is applied where the encoders read behind it.

    Returns:
        (n_sources, n_features) float64 on the CPU.
    """
    if any(source.layer >= target_layer for source in sources):
        raise ValueError(f"a source reads layer {target_layer} or later: it has no decoder before it")
    summed = torch.stack([written(dictionary, source, target_layer) for source in sources])
    directions = read_through(dictionary, summed, norm)
    return torch.cat([directions @ block.double().T for _, block in dictionary.at(target_layer).W_enc.blocks()], dim=1)


def row(dictionary: Dictionary, source: FeatureId, target_layer: int, norm: Norm | None = None) -> Tensor:
    """Virtual weights of one source: (n_features,) float64. See ``rows``."""
    return rows(dictionary, [source], target_layer, norm)[0]


def read_through(dictionary: Dictionary, summed: Tensor, norm: Norm | None) -> Tensor:
    """What was written, as an encoder behind a norm multiplies it, its denominator left out.

    Args:
        dictionary: says where the encoders read.
        summed: (n_sources, d_model) float64, from ``written`` or ``Written``.
        norm: of the target layer, or None when the encoders read the plain stream.
    """
    if norm is None:
        return summed
    centred = norm.centred(summed)
    return centred * norm.gain.double().cpu() if reading(dictionary).gained else centred


@dataclass(slots=True, kw_only=True, eq=False)
class Written:
    """What one unit of each source has added to the residual stream: running sums, so that no decoder is read twice."""

    dictionary: Dictionary
    sources: Sequence[FeatureId]
    """Of any layers, in any order."""
    _summed: Tensor = field(init=False)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Start with nothing written."""
        self._summed = torch.zeros(len(self.sources), self.dictionary.d_model, dtype=torch.float64)

    def before(self, target_layer: int) -> Tensor:
        """Sums of the decoders to the layers before ``target_layer``, which must not fall from call to call.

        Returns:
            (n_sources, d_model) float64 on the CPU; zeros for a source of that layer or a later one. The next call adds to it in place.
        """
        if target_layer < self._next:
            raise ValueError(f"decoders to layer {target_layer} were added already")
        for layer in range(self._next, target_layer):
            self._add(layer)
        self._next = target_layer
        return self._summed

    def _add(self, layer: int) -> None:
        places: defaultdict[int, list[int]] = defaultdict(list)
        for place, source in enumerate(self.sources):
            if source.layer <= layer < source.layer + self.dictionary.at(source.layer).W_dec.shape[1]:
                places[source.layer].append(place)
        for own, chosen in places.items():
            indices = [self.sources[place].index for place in chosen]
            self._summed[chosen] += self.dictionary.at(own).W_dec.rows(indices, out=layer - own).double()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Panel:
    """Virtual weights of S sources on neighbouring features of one layer, in float32, with a bound on their rounding."""

    start: int
    """First feature."""
    virtual: NDArray[np.float32]
    """(S, P)."""
    encoder_norm: NDArray[np.float32]
    """(P,) norms of the encoders."""
    rounding: NDArray[np.float64]
    """(S,): a virtual weight is off by at most this times its ``encoder_norm``."""


def panels(W_enc: Matrix, directions: Tensor, device: torch.device | None = None) -> Iterator[Callable[[], Panel]]:
    """Multiply all sources with all encoders of a layer, reading every encoder once; each product can be made in a thread of its own.

    float32 throughout: bfloat16 products would be twice as fast on a processor that has them, but are rounded to 8 bits. What is
    reported is computed again by ``pairs``. Memory: one block of encoders and one panel a thread, whatever the width of the layer.

    Args:
        W_enc: (n_features, d_in) encoders.
        directions: (S, d_in) float64, from ``read_through``.
        device: that multiplies; the CPU by default.

    Yields:
        What makes one panel, in order; it raises ``SubjectError`` if an encoder holds numbers that are not finite.
    """
    step = max(1, BLOCK_ELEMENTS // W_enc.shape[1])
    width = max(step, PANEL_ELEMENTS // max(1, len(directions)) // step * step)
    # The length of a sum bounds its rounding, whatever its order; 2 more for the rounding of the sources and of the norm.
    rounding = (W_enc.shape[1] + 2) * UNIT_ROUNDOFF * directions.norm(dim=1).numpy() * (1 + 1e-3)
    narrow = directions.float().to(device or torch.device("cpu"))
    for start in range(0, len(W_enc), width):
        yield partial(_panel, W_enc, narrow, slice(start, min(start + width, len(W_enc))), rounding)


def _panel(W_enc: Matrix, directions: Tensor, picked: slice, rounding: NDArray[np.float64]) -> Panel:
    """Products with neighbouring encoders, a block at a time."""
    n, step, place = picked.stop - picked.start, max(1, BLOCK_ELEMENTS // W_enc.shape[1]), directions.device
    virtual, norms = torch.empty(len(directions), n, device=place), W_enc.row_norms.get((picked.start, picked.stop))
    fresh = torch.empty(n) if norms is None else None
    buffer = torch.empty(min(step, n), W_enc.shape[1], device=place)
    for first in range(0, n, step):
        block = _block(W_enc, slice(picked.start + first, min(picked.start + first + step, picked.stop)), buffer)
        torch.mm(directions, block.T, out=virtual[:, first : first + len(block)])
        if fresh is not None:
            fresh[first : first + len(block)] = torch.linalg.vector_norm(block, dim=1)
    if fresh is not None:
        if not bool(fresh.isfinite().all()):  # a number that is not finite shows in the norm of its row
            W_enc.rows(picked)
        W_enc.row_norms[picked.start, picked.stop] = norms = fresh  # the next sources meet the same encoders
    assert norms is not None
    return Panel(start=picked.start, virtual=virtual.cpu().numpy(), encoder_norm=norms.numpy(), rounding=rounding)


def _block(W_enc: Matrix, picked: slice, buffer: Tensor) -> Tensor:
    """Some encoders, in the buffer."""
    block = buffer[: picked.stop - picked.start].copy_(W_enc.tensor[picked].to(buffer.device))  # the file's dtype is the narrower one
    if W_enc.scale is not None:
        block *= _scale(W_enc, picked).to(block.device)
    return block


def pairs(W_enc: Matrix, directions: Tensor, owner: NDArray[np.intp], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Virtual weights of n pairs of a source and an encoder, in float64: (n,). What is read was found finite by ``panels``.

    Args:
        W_enc: (n_features, d_in) encoders.
        directions: (S, d_in) float64.
        owner: (n,) rows of ``directions``.
        index: (n,) features.
    """
    found = np.empty(len(index))
    order = np.argsort(index, kind="stable")  # neighbours on disk are read together
    for some in np.array_split(order, max(1, len(index) * W_enc.shape[1] // BLOCK_ELEMENTS)):
        picked, left = torch.from_numpy(index[some]), directions[torch.from_numpy(owner[some])]
        right = W_enc.tensor[picked].float()
        if W_enc.scale is not None:
            right *= _scale(W_enc, picked)
        found[some] = left.mul_(right).sum(1).numpy()
    return found


def _scale(W_enc: Matrix, picked: slice | Tensor) -> Tensor:
    """What some rows are multiplied by, (n, 1) or ()."""
    assert W_enc.scale is not None
    return W_enc.scale[picked].unsqueeze(1) if W_enc.scale.ndim else W_enc.scale
