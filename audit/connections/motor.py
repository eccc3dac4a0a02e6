"""Motor share: how much of a feature's own output goes straight to the unembedding.

On tokens where feature j fires, p is the model's next-token distribution as it is, and q the one with j's own output,
``a_j(t) · sum of its decoders`` as it arrives in the stream, taken out of the final residual stream: the final norm is computed again, the
unembedding with its bias and the family's cap on the logits follow. The motor share is the mean of KL(p ‖ q) in nats. What j does through
later layers stays in q: only the straight path is removed.

The tokens are spread evenly over those on which j fires, in order of its activation: the middle ones of ``n_tokens`` equal parts, so that
neither its few extremes nor its many faint activations stand for all.

Everything behind the final residual stream is computed in float32 from the model's own weights, whatever their dtype: the logits of a
bfloat16 model are rounded more coarsely than most features move them.

Cost: one forward pass over the documents that hold any of these tokens, and twice (with and without) 2 · d_model · vocabulary FLOPs for
each of the at most ``n_tokens`` tokens a feature. Memory: the final residual stream of those tokens, (tokens, d_model) float32, beside the
model; logits are never held for the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from audit.connections.output_tokens import Head, arriving, head_of, in_memory
from audit.events import Observer, StepProgress, check_stop
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations, content_batches
from audit.subject.architecture import architecture_of
from audit.subject.model import LanguageModel
from audit.subject.norms import Norm

STEP = "output side"
PAIRS = 1024
"""Pairs of a feature and a token that are scored together."""
BLOCK_ELEMENTS = 1 << 22
"""Logits, or entries of the unembedding, held in float32 at once, 16 MiB."""
Share = tuple[float | None, int]
"""Motor share in nats, None where there is none, and the tokens that it is the mean of."""


def motor_shares(
    subject: Subject,
    activations: TokenActivations,
    features: Sequence[FeatureId],
    *,
    documents: Sequence[Sequence[int]] | None = None,
    n_tokens: int = 8,
    observer: Observer,
) -> dict[FeatureId, Share]:
    """Motor shares of some features.

    Args:
        subject: model and dictionary.
        activations: on the documents.
        features: any of the dictionary's; one that comes twice counts once.
        documents: what ``activations.document`` counts, token ids of each; the subject's corpus by default.
        n_tokens: tokens a feature, at most.
        observer: told the documents and pairs done; may stop between them.

    Returns:
        (motor share, tokens) a feature, in their order; (None, 0) for one that never fires, and for all where what the dictionary writes
        reaches the stream by no linear map.

    Raises:
        UsageError: the dictionary has no such feature.
        ValueError: the activations are not of these documents.
        Interrupted: the observer asked to stop.
    """
    distinct = list(dict.fromkeys(features))
    written = arriving(subject, distinct)
    if written is None:
        return dict.fromkeys(distinct, (None, 0))
    chosen = [spread(activations, feature, n_tokens) for feature in distinct]
    rows = np.concatenate([np.zeros(0, dtype=np.intp), *(row for row, _ in chosen)])
    needed, place = np.unique(rows, return_inverse=True)
    work = _Work(observer=observer, total=len(np.unique(activations.document[needed])) + len(rows))
    stream = _final_stream(subject.model, activations, needed, subject.corpus if documents is None else documents, work)
    owner = np.repeat(np.arange(len(distinct)), [len(row) for row, _ in chosen])
    strength = torch.from_numpy(np.concatenate([np.zeros(0), *(value for _, value in chosen)]))
    divergence = np.empty(len(rows))
    with output_of(subject.model) as output:
        for start in range(0, len(rows), PAIRS):
            some = slice(start, start + PAIRS)
            x = stream[torch.from_numpy(place[some])]
            taken = strength[some, None] * written[torch.from_numpy(owner[some])]
            divergence[some] = output.divergence(x, (x.double() - taken).float()).numpy()
            work.advance(len(x), "pairs of feature and token")
    sums = np.bincount(owner, divergence, minlength=len(distinct))
    counts = [len(row) for row, _ in chosen]
    return {feature: (float(total / n), n) if n else (None, 0) for feature, total, n in zip(distinct, sums, counts, strict=True)}


def spread(activations: TokenActivations, feature: FeatureId, n: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Up to ``n`` tokens on which a feature fires, the middle ones of as many equal parts in order of activation: rows and activations."""
    rows, values = activations.column(feature.layer, feature.index)
    rows, values = rows[values > 0], values[values > 0]
    parts = min(n, len(rows))
    middle = (2 * np.arange(parts) + 1) * len(rows) // (2 * max(parts, 1))
    picked = np.argsort(values, kind="stable")[middle]
    return rows[picked].astype(np.intp), values[picked].astype(np.float64)


@dataclass(slots=True, kw_only=True, eq=False)
class _Work:
    """How much is done, for the observer."""

    observer: Observer
    total: int
    done: int = 0

    def advance(self, n: int, label: str) -> None:
        self.done += n
        self.observer.notify(StepProgress(STEP, self.done, self.total, label))
        check_stop(self.observer)


def _final_stream(
    model: LanguageModel, activations: TokenActivations, rows: NDArray[np.intp], documents: Sequence[Sequence[int]], work: _Work
) -> Tensor:
    """The residual stream after the last layer on some rows of the activations, each once: (n, d_model) float32 on the CPU."""
    found, filled = torch.empty(len(rows), model.d_model), np.zeros(len(rows), dtype=bool)
    used, document = np.unique(activations.document[rows], return_inverse=True)
    if len(used) and used[-1] >= len(documents):
        raise ValueError(f"the activations are of document {used[-1]} where there are {len(documents)} documents")
    place = {key: k for k, key in enumerate(zip(document.tolist(), activations.position[rows].tolist(), strict=True))}
    check_stop(work.observer)
    site = (model.n_layers - 1, "resid_post")
    for batch in content_batches(model, [documents[index] for index in used], [site]):
        keys = zip(batch.document.tolist(), batch.position.tolist(), strict=True)
        pairs = [(k, place[key]) for k, key in enumerate(keys) if key in place]
        own, into = (np.array(side, dtype=np.intp) for side in zip(*pairs, strict=True)) if pairs else (np.zeros(0, np.intp),) * 2
        if not np.array_equal(batch.token_ids[own], activations.token_ids[rows[into]]):
            raise ValueError("the activations are not of these documents")
        found[torch.from_numpy(into)] = batch.values[site][torch.from_numpy(own)].cpu()
        filled[into] = True
        work.advance(batch.n_documents, "documents")
    if not filled.all():
        raise ValueError("the activations are of tokens that are not in these documents")
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Output:
    """All that follows the residual stream, in float32."""

    norm: Norm
    norm_bias: Tensor | None
    """(d_model,) float32; a layer norm's."""
    head: Head
    cap: float | None
    """Logits are c · tanh(logits / c) in families that cap them."""

    def divergence(self, x: Tensor, changed: Tensor) -> Tensor:
        """KL(p ‖ q) in nats of the next-token distributions of two residual streams, (n, d_model) each: (n,) float64 on the CPU."""
        with_it, without = _Expectation.begun(x), self._read(changed)
        for p, q in zip(self._logits(self._read(x)), self._logits(without), strict=True):
            with_it.add(p, q)
        return with_it.divergence()

    def logits(self, x: Tensor) -> Tensor:
        """(n, vocabulary) float32, of a residual stream (n, d_model)."""
        return torch.cat(list(self._logits(self._read(x))), dim=1)

    def _read(self, x: Tensor) -> Tensor:
        read = self.norm.weighted(x.to(self.head.weight.device).float())
        return read if self.norm_bias is None else read + self.norm_bias

    def _logits(self, read: Tensor) -> Iterator[Tensor]:
        """Logits of neighbouring tokens of the vocabulary, (n, some) float32, from what the unembedding reads."""
        step = max(1, BLOCK_ELEMENTS // max(read.shape))
        for picked, block in self.head.blocks(step):
            logits = linear(read, block, None if self.head.bias is None else self.head.bias[picked].float())
            yield logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@contextmanager
def output_of(model: LanguageModel) -> Iterator[Output]:
    """What follows the model's residual stream, for the duration of the ``with``."""
    module = model.backbone.get_submodule(architecture_of(model.architecture).final_norm)
    with head_of(model) as head, in_memory(module):
        place, bias = head.weight.device, getattr(module, "bias", None)
        yield Output(
            norm=model.final_norm.to(place),
            norm_bias=None if bias is None else bias.detach().to(place).float(),
            head=head,
            # Of the whole model: the families of images and text that take a language model in do not cap its logits.
            cap=getattr(model.hf.config, "final_logit_softcapping", None),
        )


@dataclass(slots=True, kw_only=True, eq=False)
class _Expectation:
    """KL(p ‖ q) = E_p[log p − log q] over the vocabulary, a block at a time: running sums in float64."""

    p: Tensor
    """(n,): log of the sum of exp(logits of p)."""
    q: Tensor
    mean: Tensor
    """(n,): mean of logits of p − logits of q over the tokens so far, weighted by exp(logits of p)."""

    @classmethod
    def begun(cls, x: Tensor) -> _Expectation:
        empty = torch.full((len(x),), -torch.inf, dtype=torch.float64)
        return cls(p=empty, q=empty.clone(), mean=torch.zeros(len(x), dtype=torch.float64))

    def add(self, p: Tensor, q: Tensor) -> None:
        """Take in logits of more tokens, (n, some) each."""
        # Metal knows no float64.
        p, q = (side.cpu().double() if side.device.type == "mps" else side.double() for side in (p, q))
        total = torch.logaddexp(self.p, p.logsumexp(1).cpu())
        added = (torch.exp(p - total.to(p.device)[:, None]) * (p - q)).sum(1)
        self.mean = self.mean * torch.exp(self.p - total) + added.cpu()
        self.p, self.q = total, torch.logaddexp(self.q, q.logsumexp(1).cpu())

    def divergence(self) -> Tensor:
        """(n,), ≥ 0 but for rounding, which is cut off."""
        return (self.mean - self.p + self.q).clamp_min(0.0)
