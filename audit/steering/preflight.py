"""Before the first rollout: does steering do what it says, and nothing else?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from audit.errors import PreflightError
from audit.events import Observer, StepProgress, check_stop
from audit.records import Operation, Preflight, PromptKind, SweepPlan, Treatment
from audit.scenario import Scenario
from audit.steering.generation import check_length, first_written
from audit.steering.hooks import RowWrites, compile_rows, steer
from audit.steering.strengths import Scales
from audit.steering.treatments import render
from audit.subject import Subject

STEP = "preflight"
ROWS = 32
"""Treatments that are checked in one batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What one batch of treatments did."""

    zero: float
    """Largest logit change at strength 0."""
    full: tuple[float, ...]
    """Largest logit change of each treatment."""
    firings: tuple[float, float]
    """Hook firings a token and layer, at strength 0 and as they are."""


def check(subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, *, observer: Observer) -> Preflight:
    """Check the largest dose of every direction, either sign apart, on each kind of prompt that it is used on.

    The plan's first variant is read, and one token after it, so that treatments of generated tokens are seen too.

    Args:
        subject: model and dictionary.
        plan: what will be run.
        scenario: prompts.
        scales: what strengths are measured against.
        observer: asked between batches whether to stop.

    Raises:
        PreflightError: strength 0 changes a logit at all; a direction's largest dose changes none, or gives numbers that are not finite;
            the hooks do not fire exactly once a token and layer; or nothing is steered.
        Interrupted: the observer asked to stop.
    """
    work = _work(plan)
    found: list[_Measured] = []
    for prompt, treatments in work:
        check_stop(observer)
        observer.notify(StepProgress(STEP, len(found), len(work), f"{len(treatments)} directions"))
        prompt_ids = subject.model.encode_chat(scenario.variant(plan.variants[0], prompt))
        check_length(subject.model, prompt_ids, plan.max_new_tokens)
        measured = _measure(subject, prompt_ids, treatments, scales)
        _judge(measured, treatments)
        found.append(measured)
    if not found:
        raise PreflightError("Nothing is steered", "No cell of the plan has a strength other than 0.", "Give at least one strength.")
    return Preflight(
        zero_dose_max_difference=max(measured.zero for measured in found),
        full_dose_min_difference=min(min(measured.full) for measured in found),
        firings_per_token=max(max(measured.firings) for measured in found),
    )


def _work(plan: SweepPlan) -> list[tuple[PromptKind, list[Treatment]]]:
    """The largest dose of every direction and sign, by kind of prompt, in batches."""
    largest: dict[PromptKind, dict[str, Treatment]] = {}
    for cell in plan.cells:
        if cell.treatment is not None and _dose(cell.treatment) > 0:
            known = largest.setdefault(cell.prompt, {})
            sign = "-" if cell.treatment.strength < _neutral(cell.treatment) else "+"
            name = f"{sign} {cell.treatment.operation} {cell.treatment.direction} {cell.treatment.positions} {cell.treatment.layers}"
            if name not in known or _dose(cell.treatment) > _dose(known[name]):
                known[name] = cell.treatment
    work: list[tuple[PromptKind, list[Treatment]]] = []
    for prompt, known in largest.items():
        treatments = list(known.values())
        work += [(prompt, treatments[start : start + ROWS]) for start in range(0, len(treatments), ROWS)]
    return work


def _neutral(treatment: Treatment) -> float:
    """The strength that does nothing."""
    return 1.0 if treatment.operation is Operation.MULTIPLICATIVE else 0.0


def _dose(treatment: Treatment) -> float:
    return abs(treatment.strength - _neutral(treatment))


def _measure(subject: Subject, prompt_ids: Sequence[int], treatments: Sequence[Treatment], scales: Scales) -> _Measured:
    idle = [replace(treatment, strength=_neutral(treatment)) for treatment in treatments]
    nothing: list[Treatment | None] = [None] * len(treatments)
    plain, _ = _probe(subject, prompt_ids, nothing, scales)
    at_zero, zero_firings = _probe(subject, prompt_ids, idle, scales)
    dosed, firings = _probe(subject, prompt_ids, treatments, scales)
    return _Measured(
        zero=float((at_zero - plain).abs().max()),
        full=tuple((dosed - plain).abs().flatten(1).max(dim=1).values.tolist()),
        firings=(zero_firings, firings),
    )


@torch.inference_mode()
def _probe(subject: Subject, prompt_ids: Sequence[int], treatments: Sequence[Treatment | None], scales: Scales) -> tuple[Tensor, float]:
    """Logits after the prompt and after one more token, (rows, 2, vocabulary), and hook firings a token and layer."""
    model = subject.model
    rows: RowWrites = compile_rows(model, subject.dictionary, treatments, scales)
    cache = DynamicCache(config=model.hf.config)
    prompt = torch.tensor([list(prompt_ids)], device=model.device).expand(len(treatments), -1)
    with steer(model, subject.dictionary, rows, first=first_written(model, prompt_ids)) as steering:
        after_prompt = model.hf(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        steering.phase = "generated"
        # Any token will do, as long as it is the same with and without steering.
        after_token = model.hf(input_ids=prompt[:, -1:], past_key_values=cache, use_cache=True).logits
        expected = len(treatments) * (len(prompt_ids) + 1) * len(rows.layers)
        firings = steering.written / expected if expected else 0.0
    return torch.cat([after_prompt, after_token], dim=1).float(), firings


def _judge(measured: _Measured, treatments: Sequence[Treatment]) -> None:
    report = "Report this with the model's architecture; do not trust a sweep on it."
    if measured.zero != 0:
        why = f"With hooks that add nothing, the logits differ by {measured.zero:.2g}."
        raise PreflightError("A strength of 0 changes the model", why, report)
    if measured.firings != (1.0, 1.0):
        seen = ", ".join(f"{firings:g}" for firings in measured.firings)
        raise PreflightError("Hooks do not fire once a token", f"They fired {seen} times a token and layer instead of once.", report)
    for treatment, difference in zip(treatments, measured.full, strict=True):
        if difference == 0:
            raise PreflightError(
                "A treatment does nothing",
                f"'{render(treatment)}' changes no logit on the first variant (a multiplied feature may be silent there).",
                "Leave this feature out, or choose another strength.",
            )
        if not difference < float("inf"):
            raise PreflightError(
                "A treatment breaks the model", f"'{render(treatment)}' gives logits that are not finite.", "Choose a smaller strength."
            )
