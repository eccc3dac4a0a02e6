"""Ranking → SweepPlan: every cell of a sweep, controls included, and what it will cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from audit.errors import UsageError
from audit.events import Observer, SilentObserver, check_stop
from audit.records import ArmKind, Cell, FeatureId, Positions, PromptKind, Ranking, StrengthUnit, SweepPlan, Treatment
from audit.scenario import Scenario
from audit.steering.strengths import Scales
from audit.steering.sweep import chunks, run_chunk
from audit.steering.treatments import additive, number
from audit.subject import Subject

DEFAULT_STRENGTHS: dict[StrengthUnit, tuple[float, ...]] = {StrengthUnit.RESIDUAL: (0.5, 1.0), StrengthUnit.MAX_ACTIVATION: (0.5, 1.0)}
MIN_CONTROLS = 3
"""Fewest random directions, and fewest unrelated features."""
N_MOTIVE_FREE = 3
"""Top-ranked candidates that are also steered on the motive-free prompt, beside those predicted to act."""
PROBE_TOKENS = 8
CHEAP_SECONDS = 5.0


def plan_sweep(
    subject: Subject,
    ranking: Ranking,
    scenario: Scenario,
    *,
    strengths: Sequence[float] = (),
    samples: int,
    seed: int,
    unrelated: Sequence[FeatureId],
    unit: StrengthUnit = StrengthUnit.RESIDUAL,
    positions: Positions = Positions.ALL,
    n_random: int = MIN_CONTROLS,
    temperature: float = 1.0,
    observer: Observer,
) -> SweepPlan:
    """Lay out a sweep: unsteered, zero, every candidate, random and unrelated controls, motive-free, prompt-only.

    Random directions take the layers and norms of the top-ranked candidates, one each.

    Args:
        subject: model and dictionary.
        ranking: the candidates, likeliest to act first.
        scenario: prompts and variants.
        strengths: of every steered cell, in ``unit``; empty takes ``DEFAULT_STRENGTHS``.
        samples: rollouts a variant a cell.
        seed: of the sampling.
        unrelated: control features, from ``controls.choose_unrelated``.
        unit: ``residual`` or ``max_activation``.
        positions: where every treatment writes.
        n_random: random directions.
        temperature: of the sampling.
        observer: may stop before.

    Raises:
        UsageError: no samples, no candidates, a strength of 0 or given twice, too few controls, or a treatment is refused.
        Interrupted: the observer asked to stop.
    """
    check_stop(observer)
    doses = tuple(float(strength) for strength in strengths) or DEFAULT_STRENGTHS[unit]
    _check(ranking, doses, samples=samples, temperature=temperature, n_random=n_random, n_unrelated=len(unrelated))

    def treat(direction: str | FeatureId, strength: float) -> Treatment:
        return additive(subject.dictionary, str(direction), strength, unit=unit, positions=positions)

    def steered(arm: ArmKind, direction: str | FeatureId, name: str, prompt: PromptKind = PromptKind.SCENARIO) -> Iterator[Cell]:
        for dose in doses:
            yield Cell(arm=arm, prompt=prompt, treatment=treat(direction, dose), label=f"{name} ×{number(dose)}")

    found = [ranked.feature for ranked in ranking.features]
    cells = [
        Cell(arm=ArmKind.NONE, prompt=PromptKind.SCENARIO, treatment=None, label="none"),
        Cell(arm=ArmKind.ZERO, prompt=PromptKind.SCENARIO, treatment=treat(found[0], 0.0), label="zero"),
    ]
    for feature in found:
        cells += steered(ArmKind.CANDIDATE, feature, str(feature))
    for k in range(n_random):
        cells += steered(ArmKind.RANDOM, f"random/{k}@{found[k % len(found)]}", f"random {k}")
    for feature in unrelated:
        cells += steered(ArmKind.UNRELATED, feature, f"unrelated {feature}")
    cells.append(Cell(arm=ArmKind.MOTIVE_FREE, prompt=PromptKind.MOTIVE_FREE, treatment=None, label="motive-free"))
    for feature in _worth_a_motive_free_arm(ranking):
        cells += steered(ArmKind.MOTIVE_FREE, feature, f"motive-free {feature}", PromptKind.MOTIVE_FREE)
    cells.append(Cell(arm=ArmKind.PROMPT_ONLY, prompt=PromptKind.PROMPT_ONLY, treatment=None, label="prompt-only"))
    return SweepPlan(
        cells=tuple(cells),
        variants=tuple(range(scenario.variants)),
        samples_per_variant=samples,
        seed=seed,
        max_new_tokens=scenario.max_new_tokens,
        temperature=float(temperature),
    )


def _worth_a_motive_free_arm(ranking: Ranking) -> list[FeatureId]:
    return [ranked.feature for place, ranked in enumerate(ranking.features) if ranked.predicted_acting or place < N_MOTIVE_FREE]


def _check(ranking: Ranking, doses: Sequence[float], *, samples: int, temperature: float, n_random: int, n_unrelated: int) -> None:
    features = [ranked.feature for ranked in ranking.features]
    if samples < 1:
        raise UsageError("Nothing to sample", f"{samples} samples a variant were asked for.", "Ask for at least 1.")
    if not features or len(set(features)) < len(features):
        raise UsageError("Nothing to steer", "The ranking names no candidate, or one twice.", "Rank at least one candidate, each once.")
    if len({number(dose) for dose in doses}) < len(doses) or not all(math.isfinite(dose) and dose != 0 for dose in doses):
        listed = ", ".join(number(dose) for dose in doses)
        raise UsageError(
            "Strengths refused",
            f"{listed}: each must be a finite number other than 0, given once.",
            "Leave 0 out: the zero arm is always there.",
        )
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UsageError("Temperature refused", f"{temperature} is not a temperature.", "Give 0 or a positive number.")
    if min(n_random, n_unrelated) < MIN_CONTROLS:
        raise UsageError(
            "Too few controls",
            f"There are {n_random} random and {n_unrelated} unrelated directions; a finding needs at least {MIN_CONTROLS} of each.",
            "Choose more.",
        )


def estimate(subject: Subject, plan: SweepPlan, scenario: Scenario, scales: Scales, *, observer: Observer | None = None) -> float:
    """Seconds that the sweep will take on this machine, from a timed probe of its first chunk.

    A few tokens are generated first. If that says that a whole chunk is quick, one is run to its end, because transcripts
    mostly end before the token limit; else the limit is taken, and the estimate is an upper one.

    Raises:
        Interrupted: the observer asked to stop.
    """
    watcher = observer or SilentObserver()
    work = chunks(plan, scenario)
    n_probe = min(PROBE_TOKENS, plan.max_new_tokens)

    def timed(n_tokens: int) -> float:
        started = time.perf_counter()
        run_chunk(subject, replace(plan, max_new_tokens=n_tokens), scenario, scales, work[0], observer=watcher)
        return time.perf_counter() - started

    timed(1)
    prompt_only = timed(1)
    a_token = max(0.0, timed(n_probe) - prompt_only) / max(1, n_probe - 1)
    seconds = prompt_only + a_token * (plan.max_new_tokens - 1)
    if seconds < CHEAP_SECONDS:
        seconds = timed(plan.max_new_tokens)
    return seconds * plan.n_rollouts / work[0].n_rollouts
