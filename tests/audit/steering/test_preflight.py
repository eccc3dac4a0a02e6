from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from audit.errors import PreflightError, SubjectError, UsageError
from audit.events import SilentObserver
from audit.records import ArmKind, Attention, Cell, FeatureId, Positions, PromptKind, Ranking, SweepPlan, Treatment
from audit.scenario import Scenario
from audit.steering import generation, preflight, prompts
from audit.steering.generation import Request
from audit.steering.hooks import Steering
from audit.steering.layerwise import Layerwise
from audit.steering.plan import plan_sweep
from audit.steering.preflight import check
from audit.steering.strengths import Scales
from audit.steering.treatments import ablate, additive, clamp, multiplicative, render
from audit.subject import Dictionary, Subject

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))


@pytest.fixture
def plan(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> SweepPlan:
    return plan_sweep(
        tiny_subject,
        ranking,
        scenario,
        strengths=(0.2, 0.5),
        samples=2,
        seed=0,
        unrelated=UNRELATED,
        scales=measured,
        observer=SilentObserver(),
    )


def of(plan: SweepPlan, *treatments: Treatment) -> SweepPlan:
    cells = (Cell(arm=ArmKind.CANDIDATE, prompt=PromptKind.SCENARIO, treatment=one, label=str(k)) for k, one in enumerate(treatments))
    return replace(plan, cells=tuple(cells))


def test_a_sound_sweep_passes(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "ROWS", 4)
    found = check(tiny_subject, plan, scenario, measured, observer=SilentObserver())
    assert found.zero_dose_max_difference == 0
    assert found.full_dose_min_difference > 0
    assert found.firings_per_token == 1
    assert (found.engine, found.engine_reason) == ("layerwise", "")
    assert found.engine_max_difference is not None
    assert 0 < found.engine_max_difference < 1e-4


def test_every_direction_and_sign_is_covered_at_its_largest_dose(plan: SweepPlan) -> None:
    def of_sign(treatment: Treatment) -> tuple[str, bool]:
        return treatment.direction, treatment.strength < 0

    for prompt in PromptKind:
        steered = [cell.treatment for cell in plan.cells if cell.prompt is prompt and cell.treatment and cell.treatment.strength]
        covered = [treatment for kind, treatments in preflight._work(plan) if kind is prompt for treatment in treatments]
        assert {of_sign(treatment) for treatment in steered} == {of_sign(treatment) for treatment in covered}
        for each in covered:
            assert abs(each.strength) == max(abs(other.strength) for other in steered if of_sign(other) == of_sign(each))


def test_each_kind_of_treatment_is_seen(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, firing: FeatureId
) -> None:
    dictionary = tiny_subject.dictionary
    for treatment in (
        additive(dictionary, "clt/0/7", 0.5, positions=Positions.GENERATED),
        additive(dictionary, "clt/0/7", 0.5, positions=Positions.PROMPT),
        additive(dictionary, "clt/0/7", 0.5, positions=Positions.SPANS, spans=((3, 4), (-1, -1))),
        additive(dictionary, "clt/0/7", 0.5, attention=Attention.FROZEN),
        multiplicative(dictionary, str(firing), 0),
        clamp(dictionary, str(firing), 2, layers=(2,)),
        ablate(dictionary, str(firing)),
    ):
        assert check(tiny_subject, of(plan, treatment), scenario, measured, observer=SilentObserver()).full_dose_min_difference > 0


def test_hooks_that_do_nothing_are_found(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Steering.write

    def idle(self: Steering, layer: int, x: Tensor) -> Tensor:
        write(self, layer, x)
        return x

    monkeypatch.setattr(Steering, "write", idle)
    with pytest.raises(PreflightError, match="does nothing"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


def test_hooks_that_change_something_at_zero_are_found(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Steering.write
    monkeypatch.setattr(Steering, "write", lambda self, layer, x: write(self, layer, x) + 1e-4)
    with pytest.raises(PreflightError, match="strength of 0"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


def test_hooks_that_fire_twice_are_found(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Steering.write
    monkeypatch.setattr(Steering, "write", lambda self, layer, x: write(self, layer, write(self, layer, x)))
    with pytest.raises(PreflightError, match="once a token"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


def test_numbers_that_are_not_finite_are_found(tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan) -> None:
    huge = of(plan, additive(tiny_subject.dictionary, "clt/0/7", 1e38))
    with pytest.raises(PreflightError, match="not finite"):
        check(tiny_subject, huge, scenario, measured, observer=SilentObserver())


def test_a_multiplied_feature_that_is_silent_is_said(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, with_tensors: Callable[..., Dictionary]
) -> None:
    mute = with_tensors(tiny_subject.dictionary, b_enc=(torch.full((24,), -1e6),) * 3)
    with pytest.raises(PreflightError, match="silent"):
        check(
            replace(tiny_subject, dictionary=mute),
            of(plan, multiplicative(mute, "clt/0/7", 5)),
            scenario,
            measured,
            observer=SilentObserver(),
        )


def test_a_plan_that_steers_nothing_is_refused(tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan) -> None:
    with pytest.raises(PreflightError, match="Nothing is steered"):
        check(tiny_subject, of(plan, additive(tiny_subject.dictionary, "clt/0/7", 0)), scenario, measured, observer=SilentObserver())


def test_an_engine_that_computes_something_else_is_found(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = Layerwise.logits
    monkeypatch.setattr(Layerwise, "logits", lambda self, hidden: logits(self, hidden) * 1.01)
    with pytest.raises(PreflightError, match="does not compute what transformers does"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


def test_a_model_without_an_adapter_is_checked_by_transformers_own_pass(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "lacking", lambda model: "none was made")
    found = check(tiny_subject, plan, scenario, measured, observer=SilentObserver())
    assert (found.engine, found.engine_reason) == ("transformers", "none was made")
    assert (found.zero_dose_max_difference, found.firings_per_token, found.engine_max_difference) == (0, 1, 0)
    frozen = of(plan, additive(tiny_subject.dictionary, "clt/0/7", 0.5, attention=Attention.FROZEN))
    with pytest.raises(UsageError, match="frozen"):
        check(tiny_subject, frozen, scenario, measured, observer=SilentObserver())


def test_spans_far_into_the_answer_are_seen_and_those_behind_it_are_named(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, prompt_ids: tuple[int, ...]
) -> None:
    def at(low: int, high: int) -> Treatment:
        return additive(tiny_subject.dictionary, "clt/0/7", 0.5, positions=Positions.SPANS, spans=((low, high),))

    n = len(prompt_ids)
    found = check(tiny_subject, of(plan, at(n + 3, n + 4)), scenario, measured, observer=SilentObserver())
    assert found.full_dose_min_difference > 0
    assert found.firings_per_token == 1
    beyond = at(n + plan.max_new_tokens - 1, n + 50)  # the last token of an answer is not read any more
    with pytest.raises(PreflightError, match=f"'{re.escape(render(beyond))}': the prompt has {n} tokens and the answer at most 6"):
        check(tiny_subject, of(plan, beyond), scenario, measured, observer=SilentObserver())


def test_a_prompt_read_in_short_otherwise_than_in_full_is_found(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nothing is written to is computed in full; the way of a sweep is held against transformers."""
    last = prompts._Last.attend
    monkeypatch.setattr(prompts._Last, "attend", lambda self, *args: last(self, *args) * 1.1)
    with pytest.raises(PreflightError, match="does not compute what transformers does"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


@pytest.mark.parametrize("when", [1, 2])
def test_when_memory_runs_out_fewer_treatments_are_checked_at_a_time(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    measure, sizes = preflight._measure, []
    whole = check(tiny_subject, plan, scenario, measured, observer=SilentObserver())

    def failing(subject: Subject, request: Request, *rest: Any) -> Any:
        sizes.append(len(request.treatments))
        if len(sizes) == when:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return measure(subject, request, *rest)

    monkeypatch.setattr(preflight, "_measure", failing)
    found = check(tiny_subject, plan, scenario, measured, observer=SilentObserver())
    assert found.full_dose_min_difference == pytest.approx(whole.full_dose_min_difference, rel=1e-4)
    assert sum(sizes) - sizes[when - 1] == sum(len(treatments) for _, treatments in preflight._work(plan))
    assert max(sizes[when : when + 2]) <= -(-sizes[when - 1] // 2)


def test_a_treatment_that_does_not_fit_alone_is_said(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(preflight, "_measure", full)
    with pytest.raises(SubjectError, match="Out of memory"):
        check(tiny_subject, plan, scenario, measured, observer=SilentObserver())


def test_frozen_treatments_alone_are_not_held_against_transformers(
    tiny_subject: Subject, scenario: Scenario, measured: Scales, plan: SweepPlan
) -> None:
    frozen = of(plan, additive(tiny_subject.dictionary, "clt/0/7", 0.5, attention=Attention.FROZEN))
    assert check(tiny_subject, frozen, scenario, measured, observer=SilentObserver()).engine_max_difference is None
