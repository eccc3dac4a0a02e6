"""Sampling many treatments of one prompt together.

``generate`` runs a model layer by layer where its family has an adapter (``layerwise``), and otherwise by transformers' own forward pass
with the same hooks (``fallback``). What an answer is depends on neither, nor on which rows are computed side by side: only on the
prompt, the treatment and the random numbers, up to the rounding of matrix products of another shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.errors import UsageError
from audit.events import Observer, check_stop
from audit.records import Attention, Treatment
from audit.steering.ending import StopTexts, check_length, end_ids
from audit.steering.layerwise import lacking
from audit.steering.sampling import choose
from audit.steering.strengths import Scales
from audit.steering.treatments import render
from audit.subject import LanguageModel, Subject

Engine = Literal["layerwise", "transformers"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """Configurations of one prompt, each to be sampled as often as the others."""

    prompt_ids: tuple[int, ...]
    treatments: tuple[Treatment | None, ...]
    """One a configuration; None is unsteered."""
    uniforms: NDArray[np.float64]
    """(n_samples, max_new_tokens), the same for every configuration; see ``sampling``."""
    temperature: float
    """0 takes the likeliest token."""
    stop: tuple[str, ...] = ()
    """Texts at which an answer ends."""
    rows: int | None = None
    """Answers written at a time, at most; None: as many as memory allows."""
    ends: tuple[int, ...] | None = None
    """Tokens at which an answer ends; None: the model's own."""
    keep_logits: bool = False
    """Whether the logits are handed on too."""

    @property
    def n_samples(self) -> int:
        """Answers of each configuration."""
        return int(self.uniforms.shape[0])

    @property
    def n_new(self) -> int:
        """Most tokens of an answer."""
        return int(self.uniforms.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Written:
    """One answer."""

    configuration: int
    sample: int
    token_ids: tuple[int, ...]
    """The one that ended it included."""
    ended: bool
    """Whether an end token or a stop text ended it; False if the limit did."""
    stopped_by: str
    """The stop text that ended it; empty if none did."""
    logits: Tensor | None
    """(tokens, vocabulary) float32, from which each was chosen; None unless they were asked for."""


def engine_of(model: LanguageModel) -> tuple[Engine, str]:
    """Which engine runs a model, and why not ``layerwise``."""
    reason = lacking(model)
    return ("transformers", reason) if reason else ("layerwise", "")


@torch.inference_mode()
def generate(
    subject: Subject, request: Request, scales: Scales, *, observer: Observer, engine: Engine | None = None
) -> Iterator[Written]:
    """Sample every configuration.

    Args:
        subject: model and dictionary.
        request: the configurations, their prompt and their random numbers.
        scales: what strengths are measured against.
        observer: asked before every forward pass whether to stop.
        engine: None for the best there is.

    Yields:
        Answers, each as soon as it has ended.

    Raises:
        Interrupted: the observer asked to stop.
        SubjectError: the prompt leaves no room for the answer, or memory does not suffice for a single row.
        UsageError: a treatment is refused.
    """
    model = subject.model
    check_length(model, request.prompt_ids, request.n_new)
    possible, reason = engine_of(model)
    if (engine or possible) == "layerwise" and reason:
        raise UsageError("Cannot be run layer by layer", f"The model cannot: {reason}.", "Leave the choice of the engine open.")
    check_stop(observer)
    if (engine or possible) == "layerwise":
        from audit.steering.scheduling import run

        yield from run(subject, request, scales, observer=observer)
        return
    refuse_frozen(request, reason or "the engine of transformers was asked for")
    from audit.steering.fallback import run as run_fallback

    yield from run_fallback(subject, request, scales, observer=observer)


def refuse_frozen(request: Request, reason: str) -> None:
    """Frozen attention needs the attention of our own.

    Raises:
        UsageError: a treatment asks for it.
    """
    for treatment in request.treatments:
        if treatment is not None and treatment.attention is Attention.FROZEN:
            why = f"'{render(treatment)}' freezes attention, for which the model has to be run layer by layer: {reason}."
            raise UsageError("Attention cannot be frozen here", why, "Leave attention free, or use a model of another architecture.")


class Choosing:
    """Chooses tokens for rows, and sees where answers end.

    Args:
        model: whose tokens they are.
        request: what is asked for.
    """

    def __init__(self, model: LanguageModel, request: Request) -> None:
        self._request = request
        self._ends = frozenset(end_ids(model) if request.ends is None else request.ends)
        self._stops = StopTexts(model=model, texts=request.stop)
        self._uniforms = torch.from_numpy(np.ascontiguousarray(request.uniforms))

    def ending(self, token_ids: list[int]) -> tuple[bool, str]:
        """Whether an answer has ended by itself, and the stop text that ended it."""
        if token_ids[-1] in self._ends:
            return True, ""
        text = self._stops.found(token_ids)
        return bool(text), text

    def choose(self, logits: Tensor, samples: list[int], steps: list[int]) -> list[int]:
        """Next token of every row."""
        drawn = self._uniforms[samples, steps]
        chosen: list[int] = choose(logits, drawn, self._request.temperature).tolist()
        return chosen
