"""SweepPlan → Rollouts, in chunks whose composition the plan alone decides, so that any of them can be run again.

A chunk is a block of cells on one prompt (kind and variant) with its samples: what is handed on, and kept, together. All chunks of a prompt
are computed together, and each is handed on when its last answer has ended. A run that was stopped goes on with the chunks that are not
done; its draws are the same, whatever is computed beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import TypeVar

import numpy as np

from audit.events import Observer, StepProgress, check_stop
from audit.records import Cell, PromptKind, Rollout, SweepPlan
from audit.scenario import Scenario
from audit.steering.doses import scales_of
from audit.steering.generation import Request, Written, generate
from audit.steering.sampling import uniforms
from audit.steering.strengths import Scales
from audit.subject import Subject

STEP = "steering"
Item = TypeVar("Item")
CHUNK = 64
"""Rollouts that are kept together at most, unless one cell has more: what is lost, beside what is under way, when a run is stopped."""
SAMPLES = 1024
"""Rollouts of a cell on one prompt that are kept together at most: they share what is read of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A unit of work: some cells and samples of one prompt."""

    index: int
    prompt: PromptKind
    variant: int
    cells: tuple[Cell, ...]
    samples: tuple[int, ...]

    @property
    def n_rollouts(self) -> int:
        """Rollouts in it."""
        return len(self.cells) * len(self.samples)


def chunks(plan: SweepPlan, scenario: Scenario) -> tuple[Chunk, ...]:
    """Divide a plan into chunks of about ``CHUNK`` rollouts, as even as can be, variant by variant.

    Args:
        plan: what to run.
        scenario: whose variants they are.

    Raises:
        ScenarioError: the plan names a variant that the scenario has not.
    """
    found: list[Chunk] = []
    for variant in plan.variants:
        for prompt in PromptKind:
            scenario.variant(variant, prompt)
            cells = [cell for cell in plan.cells if cell.prompt is prompt]
            for samples in _evenly(range(plan.samples_per_variant), SAMPLES):
                for block in _evenly(cells, max(1, CHUNK // len(samples))):
                    found.append(Chunk(index=len(found), prompt=prompt, variant=variant, cells=tuple(block), samples=tuple(samples)))
    return tuple(found)


def _evenly(items: Sequence[Item], most: int) -> list[Sequence[Item]]:
    n = -(-len(items) // most)
    bounds = [len(items) * k // n for k in range(n + 1)] if n else []
    return [items[start:end] for start, end in pairwise(bounds)]


def run(
    subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, *, done: frozenset[int] = frozenset(), observer: Observer
) -> Iterator[tuple[int, tuple[Rollout, ...]]]:
    """Run what is left of a sweep.

    Args:
        subject: model and dictionary.
        plan: what to run.
        scenario: prompts.
        scales: what strengths are measured against.
        done: indices of chunks that need not be run again.
        observer: told the rollouts done; asked before every forward pass whether to stop.

    Yields:
        (index of the chunk, its rollouts by cell and sample), each as soon as it is finished.

    Raises:
        Interrupted: the observer asked to stop; chunks that were not yielded are lost.
        SubjectError: a prompt leaves no room for the answer, or not even one answer fits into memory.
    """
    scales, work = scales_of(scales, plan), chunks(plan, scenario)
    finished = sum(chunk.n_rollouts for chunk in work if chunk.index in done)
    for (variant, prompt, _), group in groupby(work, key=lambda chunk: (chunk.variant, chunk.prompt, chunk.samples)):
        label = f"variant {variant}, {prompt}"
        todo = [chunk for chunk in group if chunk.index not in done]
        if not todo:
            continue
        for chunk, rollouts in _run_prompt(subject, plan, scenario, scales, todo, _Told(observer, finished, plan.n_rollouts, label)):
            yield chunk.index, rollouts
        finished += sum(chunk.n_rollouts for chunk in todo)
        observer.notify(StepProgress(STEP, finished, plan.n_rollouts, label))


@dataclass(slots=True)
class _Told:
    """Tells the observer of every so many rollouts."""

    observer: Observer
    done: int
    total: int
    label: str
    told: int = 0

    def one_more(self) -> None:
        self.done += 1
        if self.done - self.told >= max(1, self.total // 200):
            self.told = self.done
            self.observer.notify(StepProgress(STEP, self.done, self.total, self.label))


@dataclass(slots=True)
class _Open:
    """A chunk with what is there of it."""

    chunk: Chunk
    first: int
    """Its first cell's number among the configurations."""
    found: dict[tuple[int, int], Written] = field(default_factory=dict)


def request_of(subject: Subject, plan: SweepPlan, scenario: Scenario, todo: Sequence[Chunk]) -> Request:
    """Chunks of one prompt with the same samples, as what is generated together."""
    first = todo[0]
    return Request(
        prompt_ids=subject.model.encode_chat(scenario.variant(first.variant, first.prompt)),
        treatments=tuple(cell.treatment for chunk in todo for cell in chunk.cells),
        uniforms=np.stack([uniforms(plan.seed, first.variant, sample, plan.max_new_tokens) for sample in first.samples]),
        temperature=plan.temperature,
        stop=scenario.stop,
    )


def _run_prompt(
    subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, todo: Sequence[Chunk], told: _Told
) -> Iterator[tuple[Chunk, tuple[Rollout, ...]]]:
    check_stop(told.observer)
    request = request_of(subject, plan, scenario, todo)
    open_chunks: list[_Open] = []
    of_configuration: list[_Open] = []
    for chunk in todo:
        open_chunks.append(_Open(chunk, len(of_configuration)))
        of_configuration += [open_chunks[-1]] * len(chunk.cells)
    for written in generate(subject, request, scales, observer=told.observer):
        told.one_more()
        held = of_configuration[written.configuration]
        held.found[written.configuration - held.first, written.sample] = written
        if len(held.found) == held.chunk.n_rollouts:
            yield held.chunk, _rollouts(subject, request.prompt_ids, held)
            held.found = {}


def _rollouts(subject: Subject, prompt_ids: tuple[int, ...], held: _Open) -> tuple[Rollout, ...]:
    """By cell and sample."""
    chunk = held.chunk
    rollouts: list[Rollout] = []
    for place, cell in enumerate(chunk.cells):
        for at, sample in enumerate(chunk.samples):
            written = held.found[place, at]
            rollouts.append(
                Rollout(
                    cell=cell.label,
                    variant=chunk.variant,
                    sample=sample,
                    prompt_ids=prompt_ids,
                    token_ids=written.token_ids,
                    text=subject.model.decode(written.token_ids),
                    finished=written.ended,
                    stopped_by=written.stopped_by,
                )
            )
    return tuple(rollouts)
