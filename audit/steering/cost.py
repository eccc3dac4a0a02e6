"""What a sweep will take on this machine: counted from its plan, and timed on a few of its rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from audit.events import Observer, SilentObserver, check_stop
from audit.records import SweepCost, SweepPlan
from audit.scenario import Scenario
from audit.steering.doses import scales_of
from audit.steering.fallback import plan_rows
from audit.steering.generation import Request, engine_of, generate
from audit.steering.memory import plan_memory
from audit.steering.scheduling import job_of
from audit.steering.strengths import Scales
from audit.steering.sweep import Chunk, chunks, request_of
from audit.subject import Subject

PROBE_TOKENS = 8
CHEAP_SECONDS = 5.0
"""A probe that costs less is run to its end: answers mostly end before the token limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """What one prompt of a sweep takes."""

    chunks: tuple[Chunk, ...]
    n_tokens: int
    n_rollouts: int
    computed: float
    """Tokens of prompts that are computed, a token that only some layers compute counted in proportion."""
    rows: int
    memory_bytes: int
    free_bytes: int


def estimate(subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, *, observer: Observer | None = None) -> SweepCost:
    """Count a sweep, and time a probe of it.

    The probe generates a few tokens of as many rows as are written at a time. If that says that writing them to their end is quick, it is
    done; else the token limit is taken, and the estimate is an upper one.

    Args:
        subject: model and dictionary.
        plan: what would be run.
        scenario: its prompts.
        scales: what strengths are measured against.
        observer: asked before every forward pass whether to stop.

    Raises:
        Interrupted: the observer asked to stop.
        SubjectError: a prompt leaves no room for the answer.
    """
    watcher, scales = observer or SilentObserver(), scales_of(scales, plan)
    work = groupby(chunks(plan, scenario), key=lambda chunk: (chunk.variant, chunk.prompt, chunk.samples))
    prompts = [_count(subject, plan, scenario, scales, tuple(group)) for _, group in work]
    largest = max(prompts, key=lambda each: (each.n_rollouts, each.n_tokens))
    seconds = _timed(subject, _probe(subject, plan, scenario, largest), scales, watcher)
    engine, reason = engine_of(subject.model)
    return SweepCost(
        n_configurations=len({(at.variant, at.prompt, cell.label) for each in prompts for at in each.chunks for cell in at.cells}),
        n_rollouts=plan.n_rollouts,
        prompt_tokens=math.ceil(sum(each.computed for each in prompts)),
        prompt_tokens_unshared=sum(each.n_tokens * each.n_rollouts for each in prompts),
        generated_tokens=plan.n_rollouts * plan.max_new_tokens,
        rows=largest.rows,
        memory_bytes=max(each.memory_bytes for each in prompts),
        free_bytes=largest.free_bytes,
        seconds=seconds * plan.n_rollouts,
        engine=engine,
        engine_reason=reason,
    )


def _count(subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, todo: Sequence[Chunk]) -> _Prompt:
    request = request_of(subject, plan, scenario, todo)
    n_tokens, n_rollouts = len(request.prompt_ids), len(request.treatments) * request.n_samples
    if engine_of(subject.model)[0] == "transformers":
        memory, computed = plan_rows(subject.model, request), float(n_tokens * n_rollouts)
    else:
        job = job_of(subject, request, scales)
        memory, n_layers = plan_memory(subject.model, job.need), job.runner.n_layers
        starts = (entry for entry in job.entries if entry is not None)
        layers = job.upto + sum((n_layers - job.again(entry)) * (1 - entry.token / n_tokens) for entry in starts)
        computed = n_tokens * layers / n_layers
    return _Prompt(
        chunks=tuple(todo),
        n_tokens=n_tokens,
        n_rollouts=n_rollouts,
        computed=computed,
        rows=memory.rows,
        memory_bytes=memory.memory_bytes,
        free_bytes=memory.free_bytes,
    )


def _probe(subject: Subject, plan: SweepPlan, scenario: Scenario, prompt: _Prompt) -> Request:
    """Configurations spread evenly over those of a prompt, as many as are written at a time."""
    request = request_of(subject, plan, scenario, prompt.chunks)
    n = min(len(request.treatments), max(1, prompt.rows // request.n_samples))
    return replace(request, treatments=tuple(request.treatments[k * len(request.treatments) // n] for k in range(n)))


def _timed(subject: Subject, probe: Request, scales: Scales, observer: Observer) -> float:
    """Seconds an answer."""

    def seconds(n_tokens: int) -> float:
        check_stop(observer)
        started = time.perf_counter()
        for _ in generate(subject, replace(probe, uniforms=probe.uniforms[:, :n_tokens]), scales, observer=observer):
            pass
        return time.perf_counter() - started

    n_probe = min(PROBE_TOKENS, probe.n_new)
    seconds(1)
    prompt_only = seconds(1)
    a_token = max(0.0, seconds(n_probe) - prompt_only) / max(1, n_probe - 1)
    whole = prompt_only + a_token * (probe.n_new - 1)
    if whole < CHEAP_SECONDS:
        whole = seconds(probe.n_new)
    return whole / (len(probe.treatments) * probe.n_samples)
