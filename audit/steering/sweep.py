"""SweepPlan → Rollouts, in chunks whose composition the plan alone decides, so that any of them can be run again.

A chunk is a block of cells on one prompt (kind and variant) with its samples. A run that was stopped goes on with the chunks
that are not done, and gives the same tokens, bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from audit.events import Observer, StepProgress, check_stop
from audit.records import Cell, PromptKind, Rollout, SweepPlan
from audit.scenario import Scenario
from audit.steering.generation import Batch, check_length, end_ids, generate, uniforms
from audit.steering.strengths import Scales
from audit.subject import Subject

STEP = "steering"
Item = TypeVar("Item")
MAX_ROWS = 192
"""Rollouts in a batch: beyond it a step is no quicker a row, and one that is stopped loses more."""


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
    """Divide a plan into chunks of at most ``MAX_ROWS`` rollouts, as even as can be, variant by variant.

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
            for samples in _evenly(range(plan.samples_per_variant), MAX_ROWS):
                for block in _evenly(cells, max(1, MAX_ROWS // len(samples))):
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
        SubjectError: a prompt leaves no room for the answer.
    """
    finished = 0
    for chunk in chunks(plan, scenario):
        if chunk.index not in done:
            check_stop(observer)
            yield chunk.index, run_chunk(subject, plan, scenario, scales, chunk, observer=observer)
        finished += chunk.n_rollouts
        observer.notify(StepProgress(STEP, finished, plan.n_rollouts, f"variant {chunk.variant}, {chunk.prompt}"))


def run_chunk(
    subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, chunk: Chunk, *, observer: Observer
) -> tuple[Rollout, ...]:
    """The rollouts of one chunk, by cell and sample.

    Raises:
        Interrupted, SubjectError: as ``run``.
    """
    model = subject.model
    prompt_ids = model.encode_chat(scenario.variant(chunk.variant, chunk.prompt))
    check_length(model, prompt_ids, plan.max_new_tokens)
    batch = Batch(
        prompt_ids=prompt_ids,
        treatments=tuple(cell.treatment for cell in chunk.cells),
        uniforms=np.stack([uniforms(plan.seed, chunk.variant, sample, plan.max_new_tokens) for sample in chunk.samples]),
        temperature=plan.temperature,
    )
    ends = frozenset(end_ids(model))
    return tuple(
        Rollout(
            cell=cell.label,
            variant=chunk.variant,
            sample=sample,
            prompt_ids=prompt_ids,
            token_ids=token_ids,
            text=model.decode(token_ids),
            finished=token_ids[-1] in ends,
        )
        for cell, of_cell in zip(chunk.cells, generate(subject, batch, scales, observer=observer), strict=True)
        for sample, token_ids in zip(chunk.samples, of_cell, strict=True)
    )
