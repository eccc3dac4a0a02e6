"""TWERA+OV: TWERA that follows the source through attention to later positions.

``TWERA+OV_ij = Σ_q a_j(q) · Σ_{p ≤ q} Δ_ij(p → q) / Σ_q a_j(q)``, where Δ_ij(p → q) is the change of j's pre-activation at q that writing
``a_i(p) · W_dec[i]`` at p causes in the frozen forward pass (``frozen``): by the residual stream and by the value and output matrices of
all attention between, any number of layers of them. The encoder's own norm is taken as for TWERA: gain in, denominator frozen at q.

The map is linear, so what is written at all positions of a document is pushed forward at once. Two changes of the stream are carried for
each source: ``direct``, what was written and stays at its position, and ``attended``, all that attention made of it. The first gives TWERA,
both together TWERA+OV. "Restricted to q = p" in the definition means the first, the direct path: attention of a position to itself also
arrives at q = p, but it goes through attention and counts there.

Blind spots: how patterns and MLPs react to the source is left out, so effects through keys and queries and through other features are not
here; nor is a target that the source switches off.

Cost, beside one forward pass of each document: a source that fires in a document needs 2·(weights of attention + tokens · d_heads) FLOPs a
token and layer behind it, and 4·d_model for each target that is active there; documents in which no source fires are not run. The encoders
of the features that are active in a document are read once a document. Memory: the result, 32 bytes a source and target; the changes of the
sources that are carried together (``STREAM_ELEMENTS``), about eight times over; and one layer's pattern, heads × tokens² numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from audit.connections import virtual_weights
from audit.connections.coactivation import Floats, divided, positive
from audit.connections.frozen import Attend, FrozenModel
from audit.connections.twera import denominators
from audit.errors import UsageError
from audit.events import Observer, StepProgress, check_stop
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations

STEP = "attention"
STREAM_ELEMENTS = 1 << 24
"""Numbers in one change of the stream, for all sources that are carried together: 64 MiB."""
READ_ELEMENTS = 1 << 25
"""Numbers in the encoder rows that are read together: 128 MiB."""
DOT_ELEMENTS = 1 << 21
"""Numbers in the encoder rows that are laid out token by token at once: 16 MiB, since it is fastest where the cache holds it."""
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFlow:
    """What S sources do to the F targets of one layer, on the tokens used."""

    layer: int
    direct: Floats
    """(S, F): TWERA, without attention; 0 where the target never fires, and for sources that are not of an earlier layer."""
    whole: Floats
    """(S, F): TWERA+OV."""
    n_reached: NDArray[np.int64]
    """(S, F): tokens on which the target fires after the source has fired in the same document, or as it does: the support."""
    target_sum: Floats
    """(F,): sum of a_j."""
    n_firing: NDArray[np.int64]
    """(F,): tokens on which the target fires."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flow:
    """What sources do to the features of all later layers."""

    sources: tuple[FeatureId, ...]
    layers: tuple[LayerFlow, ...]
    """One a layer of targets, in order."""
    rows: NDArray[np.int64]
    """(n_tokens,): the tokens used, as rows of the activations."""
    n_documents: int
    """Whole documents that these are the content tokens of."""
    operations: float
    """Multiplications and additions, beside one forward pass of each document."""

    @property
    def n_tokens(self) -> int:
        """Content tokens used."""
        return len(self.rows)


def through_attention(
    subject: Subject,
    activations: TokenActivations,
    sources: Sequence[FeatureId],
    *,
    max_tokens: int,
    documents: Sequence[Sequence[int]] | None = None,
    observer: Observer,
) -> Flow:
    """Weights of sources on every feature of every later layer, without attention and through it.

    Args:
        subject: model and dictionary.
        activations: of documents; their content tokens are what the sums run over.
        sources: features of any layers.
        max_tokens: content tokens used at most, but for the first document; whole documents are used, evenly spread.
        documents: token ids of each document that was observed; the subject's corpus if None.
        observer: told the documents done; may stop between them.

    Raises:
        SubjectError: the dictionary reads or writes a site without a virtual weight, or the model cannot be frozen.
        UsageError: no such source, or no tokens are allowed.
        ValueError: the activations are not of these documents.
        Interrupted: the observer asked to stop.
    """
    if max_tokens < 1:
        raise UsageError("No tokens to use", f"At most {max_tokens} tokens are allowed.", "Allow one or more.")
    virtual_weights.reading(subject.dictionary)
    decoders = tuple(subject.dictionary.decoder(source) for source in sources)
    texts = subject.corpus if documents is None else documents
    used = spread(activations, max_tokens)
    frozen = FrozenModel(subject.model)
    sums = _Sums(subject, activations, tuple(sources), frozen.n_weights)
    for done, rows in enumerate(used):
        check_stop(observer)
        observer.notify(StepProgress(STEP, done, len(used), f"{sum(len(each) for each in used[:done])} tokens"))
        ids = _document(activations, rows, texts)
        for chunk in _chunks(activations, rows, sources, len(ids) * subject.model.d_model):
            frozen.run(ids, _Streams(sums, decoders, rows, chunk, len(ids)).visit)
    return sums.flow(np.concatenate([np.zeros(0, dtype=np.int64), *used]), len(used))


def spread(activations: TokenActivations, max_tokens: int) -> list[NDArray[np.int64]]:
    """Rows of each document of an evenly spread choice, in order: as many as have ``max_tokens`` content tokens, but at least one."""
    _, first, count = np.unique(activations.document, return_index=True, return_counts=True)
    # Multiples of the golden ratio: documents drawn in this order are evenly spread wherever it stops.
    order = np.argsort(np.arange(len(first)) * _GOLDEN % 1.0, kind="stable")
    fits = int(np.searchsorted(np.cumsum(count[order]), max_tokens, side="right"))
    return [np.arange(first[each], first[each] + count[each]) for each in sorted(order[: max(1, fits)])]


def _document(activations: TokenActivations, rows: NDArray[np.int64], texts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Token ids of the document that rows of the activations belong to."""
    number, position = int(activations.document[rows[0]]), activations.position[rows]
    ids = texts[number] if number < len(texts) else ()
    if position[-1] >= len(ids) or any(ids[p] != token for p, token in zip(position, activations.token_ids[rows], strict=True)):
        raise ValueError(f"document {number} is not the one that was observed: give the documents that the activations are of")
    return ids


def _chunks(
    activations: TokenActivations, rows: NDArray[np.int64], sources: Sequence[FeatureId], elements: int
) -> Iterator[NDArray[np.int64]]:
    """Places of the sources that fire on some rows, as many together as the memory is for."""
    firing = [s for s, source in enumerate(sources) if _fires(activations, rows, source)]
    size = max(1, STREAM_ELEMENTS // elements)
    for start in range(0, len(firing), size):
        yield np.asarray(firing[start : start + size])


def _fires(activations: TokenActivations, rows: NDArray[np.int64], source: FeatureId) -> bool:
    fired, _ = activations.column(source.layer, source.index)
    first, behind = np.searchsorted(fired, [rows[0], rows[-1] + 1])
    return bool(behind > first)


class _Sums:
    """Sums over tokens for all sources and all targets, in float64."""

    def __init__(
        self, subject: Subject, activations: TokenActivations, sources: tuple[FeatureId, ...], weights: Sequence[int]
    ) -> None:
        self.subject, self.activations, self.sources = subject, activations, sources
        self.weights = weights
        """Of each layer's attention."""
        lowest = min((source.layer for source in sources), default=subject.dictionary.n_layers)
        widths = subject.dictionary.widths
        self.layers = {layer: np.zeros((3, len(sources), widths[layer])) for layer in subject.dictionary.present if layer > lowest}
        """Layer → (3, S, F): a_j times the direct change, a_j times the attended change, tokens reached."""
        self.operations = 0.0

    def add(self, layer: int, places: NDArray[np.int64], rows: NDArray[np.int64], changes: Tensor, reached: NDArray[np.bool_]) -> None:
        """Add what a layer's features read of the changes on some tokens.

        Args:
            layer: of the targets.
            places: (R,) sources.
            rows: (n,) tokens, in a row.
            changes: (n, d_model, 2·R) of the stream: R direct ones, then R attended ones.
            reached: (n, R) whether the source has fired.
        """
        target = positive(self.activations.layers[layer][rows[0] : rows[-1] + 1])
        sigma = denominators(self.subject.dictionary, self.activations, layer)
        divided_target = divided(target, None if sigma is None else sigma[rows])
        most = max(1, int(np.diff(target.indptr).max()))
        step = max(1, READ_ELEMENTS // (most * changes.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            self._add(layer, places, divided_target[some], changes[some], reached[some])

    def _add(self, layer: int, places: NDArray[np.int64], target: csr_matrix, changes: Tensor, reached: NDArray[np.bool_]) -> None:
        features, place, weight = _padded(target)
        if not len(features):
            return
        encoders = self._encoders(layer, features, changes.device)
        dots = _dots(encoders, place.to(changes.device), changes) * weight[..., None]
        self.operations += 2.0 * place.numel() * changes[0].numel()
        counted = torch.from_numpy(reached)[:, None] & (weight > 0)[..., None]
        found = torch.cat([dots, counted.double()], dim=-1).flatten(0, 1)
        summed = torch.zeros(len(features), found.shape[1], dtype=torch.float64).index_add_(0, place.flatten(), found)
        self.layers[layer][:, places[:, None], features] += summed.T.reshape(3, len(places), -1).numpy()

    def _encoders(self, layer: int, features: NDArray[np.int64], device: torch.device) -> Tensor:
        """(n, d_model): what some features read of the stream, where it is divided by nothing."""
        rows = self.subject.dictionary.at(layer).W_enc.rows(torch.from_numpy(features), device=device)
        how = virtual_weights.reading(self.subject.dictionary)
        if not how.divided:
            return rows
        norm = self.subject.model.mlp_norm(layer).to(device)
        return norm.centred(rows * norm.gain if how.gained else rows)  # centring is its own transpose

    def flow(self, rows: NDArray[np.int64], n_documents: int) -> Flow:
        """The weighted means, over the tokens used."""
        layers = tuple(self._mean(layer, self.layers.pop(layer), rows) for layer in tuple(self.layers))
        return Flow(sources=self.sources, layers=layers, rows=rows, n_documents=n_documents, operations=self.operations)

    def _mean(self, layer: int, sums: Floats, rows: NDArray[np.int64]) -> LayerFlow:
        target = positive(self.activations.layers[layer][rows])
        total = np.asarray(target.sum(axis=0)).ravel()
        direct, whole, n_reached = sums  # changed in place, since they can be large
        for each in (direct, whole):
            np.divide(each, total, out=each, where=total > 0)  # where it is 0, so is the sum
        whole += direct
        return LayerFlow(
            layer=layer,
            direct=direct,
            whole=whole,
            n_reached=np.rint(n_reached).astype(np.int64),
            target_sum=total,
            n_firing=np.bincount(target.indices, minlength=target.shape[1]),
        )


def _dots(encoders: Tensor, place: Tensor, changes: Tensor) -> Tensor:
    """Each token's changes, (n, d_model, C), times the encoders (U, d_model) of its own features, (n, K): (n, K, C) float64 on the CPU."""
    wide = torch.float32 if changes.device.type == "mps" else torch.float64
    step = max(1, DOT_ELEMENTS // max(1, place.shape[1] * encoders.shape[1]))
    pairs = zip(torch.split(place, step), torch.split(changes, step), strict=True)
    return torch.cat([torch.bmm(encoders[each].to(wide), change.to(wide)).double().cpu() for each, change in pairs])


def _padded(target: csr_matrix) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """The active features of each token side by side.

    Returns:
        features (U,) that are active on some token; for each token, (n, K) with K the most that are active on one: places in
        ``features``, and activations, 0 where there is none.
    """
    features, place = np.unique(target.indices.astype(np.int64), return_inverse=True)
    counts = np.diff(target.indptr)
    token, slot = np.repeat(np.arange(len(counts)), counts), np.arange(target.nnz) - np.repeat(target.indptr[:-1], counts)
    places, weights = (np.zeros((len(counts), int(counts.max(initial=0))), dtype=kind) for kind in (np.int64, np.float64))
    places[token, slot], weights[token, slot] = place, target.data
    return features, torch.from_numpy(places), torch.from_numpy(weights)


class _Streams:
    """The changes of the stream of one document that some sources cause, layer by layer."""

    def __init__(
        self, sums: _Sums, decoders: Sequence[Tensor], rows: NDArray[np.int64], places: NDArray[np.int64], n_positions: int
    ) -> None:
        activations, dictionary = sums.activations, sums.subject.dictionary
        self.sums, self.places, self.rows = sums, places, rows
        self.reads, self.writes = dictionary.input_hook, dictionary.output_hook
        self.sources = [sums.sources[place] for place in places]
        self.decoders = [decoders[place] for place in places]
        self.positions = torch.from_numpy(activations.position[rows].astype(np.int64))
        fired = [activations.layers[each.layer][rows[0] : rows[-1] + 1, [each.index]].toarray()[:, 0] for each in self.sources]
        self.fired = np.stack(fired)
        """(R, content tokens)"""
        shape = (len(places), n_positions, sums.subject.model.d_model)
        self.direct = torch.zeros(shape, device=sums.subject.model.device)
        self.attended = torch.zeros_like(self.direct)
        self.moved = False
        self.d_heads = sums.subject.model.d_heads

    def visit(self, layer: int, attend: Attend) -> None:
        """Go on from before a layer to behind it."""
        if self.reads == "resid_pre":
            self._read(layer)
        if self.writes == "resid_pre":
            self._write(layer)
        if self.moved and any(target >= layer for target in self.sums.layers):
            self.attended += attend(self.direct + self.attended)
            self.sums.operations += 2.0 * self.direct[..., 0].numel() * (self.sums.weights[layer] + self.direct.shape[1] * self.d_heads)
        if self.reads != "resid_pre":
            self._read(layer)
        if self.writes != "resid_pre":
            self._write(layer)

    def _write(self, layer: int) -> None:
        """Add what the sources write to a layer."""
        for row, (source, decoder) in enumerate(zip(self.sources, self.decoders, strict=True)):
            if 0 <= layer - source.layer < len(decoder):
                written = torch.from_numpy(self.fired[row])[:, None] * decoder[layer - source.layer]
                self.direct[row, self.positions.to(self.direct.device)] += written.to(self.direct)
                self.moved = True

    def _read(self, layer: int) -> None:
        """Add up what the features of a layer read, of sources of earlier layers."""
        earlier = np.asarray([source.layer < layer for source in self.sources])
        if layer not in self.sums.layers or not earlier.any():
            return
        reached = np.logical_or.accumulate(self.fired[earlier] > 0, axis=1)
        first = int(reached.any(axis=0).argmax())  # before it nothing has changed
        where, kept = self.positions[first:].to(self.direct.device), torch.from_numpy(earlier).to(self.direct.device)
        changes = torch.cat([stream[kept][:, where] for stream in (self.direct, self.attended)])
        self.sums.add(layer, self.places[earlier], self.rows[first:], changes.permute(1, 2, 0), reached[:, first:].T)
