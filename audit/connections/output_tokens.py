"""Output tokens as targets: what a source adds to the logits, straight through the residual stream.

An output token j is a target whose activation is 1 on the tokens behind which j comes next in the text as a content token, 0 elsewhere.
``V_ij = < sum of all decoders of i as they arrive in the stream , gain of the final norm · W_U[j] >``, centred first where the norm does
so. As with features behind a norm, the gain is constant and belongs to V; the denominator changes from token to token and belongs inside
the expectation: ``ERA = E[1(next = j) · a_i / sigma] · V_ij`` and ``TWERA = E[1(next = j) · a_i / sigma] / E[1(next = j)] · V_ij``.

The unembedding's bias is no effect of the source and is left out. A cap on the final logits is not applied: V is what is added before it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.candidates.unembeds import into_stream
from audit.records import FeatureId
from audit.records.connections import TokenConnection
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.model import LanguageModel

ELEMENTS = 1 << 26
"""Logits or decoder entries held at once, 256 MiB: bounds the memory on large vocabularies."""
BLOCK_ELEMENTS = 1 << 22
"""Entries of the unembedding turned into float32 at once, 16 MiB."""
Edges = tuple[TokenConnection, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """The unembedding while its weights are in memory."""

    weight: Tensor
    """(vocabulary, d_model) on its own device, in the model's dtype."""
    bias: Tensor | None
    """(vocabulary,)"""

    def blocks(self, step: int | None = None) -> Iterator[tuple[slice, Tensor]]:
        """All its rows, some at a time: (which, (n, d_model) float32); ``step`` rows, or as many as ``BLOCK_ELEMENTS`` allows."""
        step = step or max(1, BLOCK_ELEMENTS // self.weight.shape[1])
        for start in range(0, len(self.weight), step):
            picked = slice(start, min(start + step, len(self.weight)))
            yield picked, self.weight[picked].float()

    def rows(self, tokens: NDArray[np.int64]) -> Tensor:
        """Rows of some tokens, (n, d_model) float64 on the CPU."""
        return self.weight[torch.from_numpy(tokens).to(self.weight.device)].cpu().double()


@contextmanager
def head_of(model: LanguageModel) -> Iterator[Head]:
    """The model's unembedding, brought to its device for the duration of the ``with`` where it is kept elsewhere."""
    hf: Any = model.hf
    module = hf.get_output_embeddings()
    with in_memory(module), torch.inference_mode():
        yield Head(weight=module.weight.detach(), bias=None if module.bias is None else module.bias.detach())


@contextmanager
def in_memory(module: torch.nn.Module) -> Iterator[None]:
    """Bring a module's own weights to the device that it runs on, where they are kept in main memory or on disk."""
    if not any(weight.is_meta for weight in module.parameters(recurse=False)):
        yield
        return
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    with align_module_device(module):
        yield


def arriving(subject: Subject, features: Sequence[FeatureId]) -> Tensor | None:
    """What each feature of activation 1 adds to the final residual stream by itself: the sum of its decoders, as they arrive there.

    Args:
        subject: model and dictionary.
        features: of any layers, in any order.

    Returns:
        (n, d_model) float64 on the CPU; None where what the dictionary writes reaches the stream by no linear map.

    Raises:
        UsageError: the dictionary has no such feature.
    """
    dictionary, places = subject.dictionary, defaultdict[int, list[int]](list)
    for place, feature in enumerate(features):
        dictionary.check(feature)
        places[feature.layer].append(place)
    found = torch.zeros(len(features), subject.model.d_model, dtype=torch.float64)
    for layer, chosen in places.items():
        W_dec = dictionary.at(layer).W_dec
        step = max(1, ELEMENTS // math.prod(W_dec.shape[1:]))
        for some in (chosen[start : start + step] for start in range(0, len(chosen), step)):
            decoders = W_dec.rows([features[place].index for place in some])
            for out in range(decoders.shape[1]):  # each passes the output projection of the layer that it is written to
                stream = into_stream(subject, layer + out, decoders[:, out])
                if stream is None:
                    return None
                found[some] += stream.cpu().double()
    return found


def output_edges(
    subject: Subject, activations: TokenActivations, sources: Sequence[FeatureId], *, top: int = 8
) -> tuple[tuple[Edges, Edges], ...]:
    """The output tokens that each source promotes and suppresses most, by V.

    Products are of float32, all sources of a chunk at once; V of the tokens that are kept is computed again in float64.

    Args:
        subject: model and dictionary.
        activations: of the corpus; its content tokens are what the expectations run over.
        sources: features of any layers, in any order.
        top: tokens kept a source, on each side.

    Returns:
        (promoted, suppressed) a source, in their order: largest V first, smallest V first; ties by token. Empty where what the sources
        write reaches the stream by no linear map.

    Raises:
        UsageError: the dictionary has no such feature.
    """
    written = arriving(subject, sources)
    if written is None:
        return (((), ()),) * len(sources)
    directions = through_final_norm(subject.model, written)
    following = _Following.of(activations, subject.model.vocabulary)
    found: list[tuple[Edges, Edges]] = []
    with head_of(subject.model) as head:
        step = max(1, ELEMENTS // len(head.weight))
        for start in range(0, len(sources), step):
            part = slice(start, start + step)
            for source, direction, sides in zip(sources[part], directions[part], _outermost(head, directions[part], top), strict=True):
                after = following.behind(activations, source)
                high, low = (_ordered(head, direction, tokens, sign) for tokens, sign in zip(sides, (-1.0, 1.0), strict=True))
                found.append((_described(subject.model, high, after), _described(subject.model, low, after)))
    return tuple(found)


def through_final_norm(model: LanguageModel, written: Tensor) -> Tensor:
    """What the unembedding multiplies for what was added to the stream, (n, d_model) float64, the norm's denominator left out."""
    norm = model.final_norm
    return norm.centred(written) * norm.gain.cpu().double()


def _outermost(head: Head, directions: Tensor, top: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Tokens with the largest V and with the smallest, one pair a source of (n, d_model) directions."""
    narrow = directions.float().to(head.weight.device)
    virtual = torch.empty(len(narrow), len(head.weight), device=narrow.device)
    for picked, block in head.blocks():
        virtual[:, picked] = narrow @ block.T
    high, low = (virtual.topk(min(top, virtual.shape[1]), largest=largest).indices.cpu().numpy() for largest in (True, False))
    yield from zip(high, low, strict=True)


def _ordered(head: Head, direction: Tensor, tokens: NDArray[np.int64], sign: float) -> list[tuple[int, float]]:
    """(token, V) in float64, smallest ``sign · V`` first, ties by token."""
    virtual = (head.rows(tokens) @ direction).tolist()
    return sorted(zip(tokens.tolist(), virtual, strict=True), key=lambda pair: (sign * pair[1], pair[0]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _After:
    """How a source fires before each token of the vocabulary."""

    flow: NDArray[np.float64]
    """(vocabulary,): sum of a_i / sigma over the tokens behind which it comes."""
    n_coactive: NDArray[np.int64]
    """(vocabulary,): those on which the source fires."""
    n_next: NDArray[np.int64]
    """(vocabulary,): all of those tokens."""
    n_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Following:
    """What comes next on every token."""

    token: NDArray[np.int32]
    """(n_tokens,), −1 for none."""
    n_next: NDArray[np.int64]
    """(vocabulary,)"""

    @classmethod
    def of(cls, activations: TokenActivations, vocabulary: int) -> _Following:
        token = activations.following()
        return cls(token=token, n_next=np.bincount(token[token >= 0], minlength=vocabulary))

    def behind(self, activations: TokenActivations, source: FeatureId) -> _After:
        """Sums over the tokens on which the source fires and another comes next."""
        rows, values = activations.column(source.layer, source.index)
        counts = (self.token[rows] >= 0) & (values > 0)
        rows, values = rows[counts], values[counts]
        flow = values.astype(np.float64) / activations.sigma[rows, -1]
        size = len(self.n_next)
        return _After(
            flow=np.bincount(self.token[rows], flow, minlength=size).astype(np.float64),
            n_coactive=np.bincount(self.token[rows], minlength=size),
            n_next=self.n_next,
            n_tokens=activations.n_tokens,
        )


def _described(model: LanguageModel, pairs: Sequence[tuple[int, float]], after: _After) -> Edges:
    return tuple(
        TokenConnection(
            token=token,
            text="".join(model.token_texts([token])),
            virtual_weight=virtual,
            era=float(after.flow[token]) / max(after.n_tokens, 1) * virtual,
            twera=float(after.flow[token]) / max(int(after.n_next[token]), 1) * virtual,
            n_coactive=int(after.n_coactive[token]),
            frequency=int(after.n_next[token]) / max(after.n_tokens, 1),
        )
        for token, virtual in pairs
    )
