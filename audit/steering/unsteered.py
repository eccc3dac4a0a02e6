"""What the model writes to a scenario's prompts when nothing is done to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audit.events import Observer, StepProgress, check_stop
from audit.scenario import Scenario
from audit.steering.generation import Request, generate
from audit.steering.sampling import uniforms
from audit.steering.strengths import Scales
from audit.subject import Subject

STEP = "scenario"
TEMPERATURE = 1.0
"""As in a sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsteered:
    """One rollout."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Written by the model."""
    sample: int


def unsteered(
    subject: Subject, scenario: Scenario, scales: Scales, *, n_rollouts: int, seed: int, observer: Observer
) -> tuple[Unsteered, ...]:
    """Sample unsteered rollouts, as many of each of the scenario's first variants as of the next, more or less.

    They are those of a sweep's unsteered arm with the same seed, as far as matrix products of another shape round alike.

    Args:
        subject: the model.
        scenario: prompts.
        scales: of the subject; nothing is written, so nothing is measured against them.
        n_rollouts: at least one.
        seed: of the sampling.
        observer: told the rollouts done; asked before every forward pass whether to stop.

    Raises:
        SubjectError: a prompt leaves no room for the answer.
        Interrupted: the observer asked to stop.
    """
    n_variants = min(n_rollouts, scenario.variants)
    found: list[Unsteered] = []
    for variant in range(n_variants):
        check_stop(observer)
        observer.notify(StepProgress(STEP, len(found), n_rollouts, "unsteered rollouts"))
        n_samples = n_rollouts // n_variants + (variant < n_rollouts % n_variants)
        prompt_ids = subject.model.encode_chat(scenario.variant(variant))
        drawn = np.stack([uniforms(seed, variant, sample, scenario.max_new_tokens) for sample in range(n_samples)])
        request = Request(prompt_ids=prompt_ids, treatments=(None,), uniforms=drawn, temperature=TEMPERATURE, stop=scenario.stop)
        written = sorted(generate(subject, request, scales, observer=observer), key=lambda each: each.sample)
        found += [Unsteered(prompt_ids=prompt_ids, token_ids=each.token_ids, sample=each.sample) for each in written]
    return tuple(found)
