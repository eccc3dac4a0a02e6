from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from audit.errors import Interrupted, UsageError
from audit.events import Event, SilentObserver
from audit.records import ArmKind, FeatureId, Operation, PromptKind, Ranking, StrengthUnit, SweepPlan
from audit.scenario import Scenario
from audit.steering.plan import DEFAULT_STRENGTHS, estimate, plan_sweep
from audit.steering.strengths import Scales
from audit.subject import Subject

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))


def plan(subject: Subject, ranking: Ranking, scenario: Scenario, **given: Any) -> SweepPlan:
    options: dict[str, Any] = {"strengths": (0.5, 1.0), "samples": 2, "seed": 0, "unrelated": UNRELATED, "observer": SilentObserver()}
    return plan_sweep(subject, ranking, scenario, **(options | given))


def test_every_arm_is_there(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    made = plan(tiny_subject, ranking, scenario)
    assert Counter(cell.arm for cell in made.cells) == {
        ArmKind.NONE: 1,
        ArmKind.ZERO: 1,
        ArmKind.CANDIDATE: 5 * 2,
        ArmKind.RANDOM: 3 * 2,
        ArmKind.UNRELATED: 3 * 2,
        ArmKind.MOTIVE_FREE: 1 + 4 * 2,  # the top three and the fifth, which is predicted to act
        ArmKind.PROMPT_ONLY: 1,
    }
    assert made.n_rollouts == len(made.cells) * 3 * 2
    assert (made.variants, made.max_new_tokens, made.temperature) == ((0, 1, 2), 6, 1.0)


def test_labels_are_short_and_unique(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    labels = [cell.label for cell in plan(tiny_subject, ranking, scenario).cells]
    assert len(set(labels)) == len(labels)
    assert set(labels) >= {"none", "zero", "clt/0/1 ×0.5", "clt/0/1 ×1", "random 0 ×0.5", "unrelated clt/0/20 ×0.5", "motive-free"}
    assert set(labels) >= {"motive-free clt/1/5 ×1", "prompt-only"}
    assert "motive-free clt/2/4 ×1" not in labels


def test_prompts_and_treatments_fit_the_arms(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    made = plan(tiny_subject, ranking, scenario, unit=StrengthUnit.MAX_ACTIVATION)
    kinds = {ArmKind.MOTIVE_FREE: PromptKind.MOTIVE_FREE, ArmKind.PROMPT_ONLY: PromptKind.PROMPT_ONLY}
    for cell in made.cells:
        assert cell.prompt is kinds.get(cell.arm, PromptKind.SCENARIO)
        assert (cell.treatment is None) == (cell.label in ("none", "motive-free", "prompt-only"))
        if cell.treatment is not None:
            assert cell.treatment.unit is StrengthUnit.MAX_ACTIVATION
            assert cell.treatment.operation is Operation.ADDITIVE
            assert (cell.treatment.strength == 0) == (cell.arm is ArmKind.ZERO)
    random = [cell.treatment.direction for cell in made.cells if cell.arm is ArmKind.RANDOM and cell.treatment is not None]
    assert random[::2] == ["random/0@clt/0/1", "random/1@clt/1/2", "random/2@clt/0/3"]


def test_no_strengths_take_the_sweeps_own(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    made = plan(tiny_subject, ranking, scenario, strengths=())
    used = {cell.treatment.strength for cell in made.cells if cell.treatment is not None}
    assert used == {0.0, *DEFAULT_STRENGTHS[StrengthUnit.RESIDUAL]}


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"samples": -1},
        {"strengths": (0.0, 1.0)},
        {"strengths": (1.0, 1.0)},
        {"strengths": (float("nan"),)},
        {"temperature": -1.0},
        {"n_random": 2},
        {"unrelated": UNRELATED[:2]},
        {"unit": StrengthUnit.FACTOR, "strengths": (1.5,)},
    ],
)
def test_plans_that_show_nothing_are_refused(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(tiny_subject, ranking, scenario, **wrong)


def test_a_ranking_without_candidates_is_refused(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    with pytest.raises(UsageError, match="Nothing to steer"):
        plan(tiny_subject, replace(ranking, features=()), scenario)


class Stopped:
    """Stops at once."""

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        return True


def test_it_stops_when_asked(tiny_subject: Subject, ranking: Ranking, scenario: Scenario) -> None:
    with pytest.raises(Interrupted):
        plan(tiny_subject, ranking, scenario, observer=Stopped())


def test_an_estimate_is_a_time(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> None:
    small = estimate(tiny_subject, plan(tiny_subject, ranking, scenario), scenario, measured)
    assert 0 < small < 600
