from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from audit.errors import Interrupted, UsageError
from audit.events import Event, SilentObserver
from audit.records import ArmKind, Attention, Cell, FeatureId, Operation, Positions, PromptKind, Ranking, StrengthUnit, SweepPlan
from audit.scenario import Scenario
from audit.steering.cost import estimate
from audit.steering.doses import doses_of, measure_kl, scales_of
from audit.steering.plan import DEFAULT_STRENGTHS, plan_sweep
from audit.steering.strengths import Scales, direction_of, scales, written_norm
from audit.subject import Subject, observe

UNRELATED = (FeatureId("clt", 0, 20), FeatureId("clt", 1, 21), FeatureId("clt", 0, 22))

UNITS = pytest.mark.parametrize("unit", [StrengthUnit.RESIDUAL, StrengthUnit.MAX_ACTIVATION, StrengthUnit.ABSOLUTE, StrengthUnit.KL])


@pytest.fixture
def plan(tiny_subject: Subject, ranking: Ranking, scenario: Scenario, measured: Scales) -> Callable[..., SweepPlan]:
    options: dict[str, Any] = {"strengths": (0.5, 1.0), "samples": 2, "seed": 0, "unrelated": UNRELATED, "scales": measured}

    def make(ranking: Ranking = ranking, subject: Subject = tiny_subject, **given: Any) -> SweepPlan:
        return plan_sweep(subject, ranking, scenario, **({"observer": SilentObserver()} | options | given))

    return make


def test_every_arm_is_there(plan: Callable[..., SweepPlan]) -> None:
    made = plan()
    assert Counter(cell.arm for cell in made.cells) == {
        ArmKind.NONE: 1,
        ArmKind.ZERO: 1,
        ArmKind.CANDIDATE: 5 * 2,
        ArmKind.RANDOM: 5 * 2,
        ArmKind.UNRELATED: 3 * 2,
        ArmKind.SIGN_FLIPPED: 4,
        ArmKind.MOTIVE_FREE: 1 + 4 * 2,  # the top three and the fifth, which is predicted to act
        ArmKind.PROMPT_ONLY: 1,
    }
    assert made.n_rollouts == len(made.cells) * 3 * 2
    assert (made.variants, made.max_new_tokens, made.temperature) == ((0, 1, 2), 6, 1.0)


def test_labels_are_short_and_unique(plan: Callable[..., SweepPlan]) -> None:
    labels = [cell.label for cell in plan().cells]
    assert len(set(labels)) == len(labels)
    assert set(labels) >= {"none", "zero", "clt/0/1 ×0.5", "clt/0/1 ×1", "random @clt/0/1 ×0.5", "unrelated clt/0/20 ×0.5", "motive-free"}
    assert set(labels) >= {"motive-free clt/1/5 ×1", "flipped clt/1/5 ×1", "prompt-only"}
    assert "motive-free clt/2/4 ×1" not in labels


def test_prompts_and_treatments_fit_the_arms(plan: Callable[..., SweepPlan]) -> None:
    made = plan(unit=StrengthUnit.MAX_ACTIVATION)
    kinds = {ArmKind.MOTIVE_FREE: PromptKind.MOTIVE_FREE, ArmKind.PROMPT_ONLY: PromptKind.PROMPT_ONLY}
    for cell in made.cells:
        assert cell.prompt is kinds.get(cell.arm, PromptKind.SCENARIO)
        assert (cell.treatment is None) == (cell.label in ("none", "motive-free", "prompt-only"))
        if cell.treatment is not None:
            assert cell.treatment.unit is StrengthUnit.MAX_ACTIVATION
            assert cell.treatment.operation is Operation.ADDITIVE
            assert (cell.treatment.strength == 0) == (cell.arm is ArmKind.ZERO)
    random = [cell.treatment.direction for cell in made.cells if cell.arm is ArmKind.RANDOM and cell.treatment is not None]
    assert random[::2] == ["random/0@clt/0/1", "random/1@clt/1/2", "random/2@clt/0/3", "random/3@clt/2/4", "random/4@clt/1/5"]


def of_arm(made: SweepPlan, arm: ArmKind) -> list[Cell]:
    return [cell for cell in made.cells if cell.arm is arm]


@UNITS
def test_every_candidates_cell_has_a_random_one_of_its_norm_at_each_layer(
    plan: Callable[..., SweepPlan], tiny_subject: Subject, measured: Scales, unit: StrengthUnit
) -> None:
    made = plan(unit=unit)
    controls = {cell.label: cell for cell in of_arm(made, ArmKind.RANDOM)}
    candidates = of_arm(made, ArmKind.CANDIDATE)
    assert controls.keys() == {f"random @{cell.label}" for cell in candidates}
    found = scales_of(measured, made)
    for cell in candidates:
        own, drawn = (vectors(tiny_subject, each, found) for each in (cell, controls[f"random @{cell.label}"]))
        assert own.keys() == drawn.keys()
        for layer in own:
            assert float(drawn[layer].norm()) == pytest.approx(float(own[layer].norm()), rel=1e-5)
            assert not torch.allclose(drawn[layer], own[layer])


def vectors(subject: Subject, cell: Cell, scales: Scales) -> dict[int, torch.Tensor]:
    assert cell.treatment is not None
    return direction_of(subject.dictionary, cell.treatment, scales)


@UNITS
def test_an_unrelated_feature_is_written_with_its_candidates_total_norm(
    plan: Callable[..., SweepPlan], tiny_subject: Subject, ranking: Ranking, measured: Scales, unit: StrengthUnit
) -> None:
    made = plan(unit=unit, strengths=(-0.5, 1.0))
    cells, found = {cell.label: cell for cell in made.cells}, scales_of(measured, made)
    for feature, ranked in zip(UNRELATED, ranking.features, strict=False):
        for dose in ("-0.5", "1"):
            control, candidate = cells[f"unrelated {feature} ×{dose}"], cells[f"{ranked.feature} ×{dose}"]
            norms = [float(torch.cat(list(vectors(tiny_subject, cell, found).values())).norm()) for cell in (control, candidate)]
            assert norms[0] == pytest.approx(norms[1], rel=1e-5)
            assert control.treatment is not None
            assert (control.treatment.strength < 0) == (dose == "-0.5")


@UNITS
def test_flipped_cells_write_the_candidates_vectors_negated(
    plan: Callable[..., SweepPlan], tiny_subject: Subject, measured: Scales, unit: StrengthUnit
) -> None:
    made = plan(unit=unit, strengths=(1.0, 0.5))
    cells, found = {cell.label: cell for cell in made.cells}, scales_of(measured, made)
    flipped = of_arm(made, ArmKind.SIGN_FLIPPED)
    assert [cell.label for cell in flipped] == [f"flipped {feature} ×1" for feature in ("clt/0/1", "clt/1/2", "clt/0/3", "clt/1/5")]
    for cell in flipped:
        own = vectors(tiny_subject, cells[cell.label.removeprefix("flipped ")], found)
        negated = vectors(tiny_subject, cell, found)
        assert own.keys() == negated.keys()
        assert all(torch.equal(negated[layer], -own[layer]) for layer in own)


@UNITS
def test_cells_say_how_much_they_write(plan: Callable[..., SweepPlan], tiny_subject: Subject, measured: Scales, unit: StrengthUnit) -> None:
    made = plan(unit=unit)
    found = scales_of(measured, made)
    for cell in made.cells:
        expected = None if cell.treatment is None else written_norm(tiny_subject.dictionary, cell.treatment, found)
        assert cell.written_norm == expected
        assert (cell.written_norm == 0) == (cell.arm is ArmKind.ZERO)


@UNITS
def test_treated_cells_have_their_doses_in_every_unit(
    plan: Callable[..., SweepPlan], tiny_subject: Subject, measured: Scales, unit: StrengthUnit
) -> None:
    made = plan(unit=unit)
    found = scales_of(measured, made)
    steered = {cell.label: cell for cell in made.cells if cell.treatment is not None}
    assert {cell.label for cell in made.cells if cell.doses is None} == {"none", "motive-free", "prompt-only"}
    treatments = [cell.treatment for cell in steered.values() if cell.treatment is not None]
    expected = doses_of(tiny_subject, treatments, found, observer=SilentObserver())
    assert [cell.doses for cell in steered.values()] == list(expected)
    zero, candidate, again = (steered[label].doses for label in ("zero", "clt/0/1 ×1", "motive-free clt/0/1 ×1"))
    assert zero is not None
    assert candidate is not None
    assert (zero.residual, zero.max_activation, zero.absolute, zero.kl) == (0, 0, 0, 0)
    assert None not in (candidate.residual, candidate.max_activation, candidate.absolute, candidate.kl)
    assert again == candidate


def test_divergences_are_calibrated_and_controls_match_what_is_written(
    plan: Callable[..., SweepPlan], tiny_subject: Subject, measured: Scales
) -> None:
    made = plan(unit=StrengthUnit.KL, strengths=(0.2, -0.1))
    found = scales_of(measured, made)
    own = {ArmKind.ZERO, ArmKind.CANDIDATE, ArmKind.MOTIVE_FREE}
    for cell in made.cells:
        if cell.treatment is not None:
            assert cell.treatment.unit is (StrengthUnit.KL if cell.arm in own else StrengthUnit.ABSOLUTE)
    cells = of_arm(made, ArmKind.CANDIDATE)
    treatments = [cell.treatment for cell in cells if cell.treatment is not None]
    assert [each.strength for each in treatments] == [0.2, -0.1] * 5 == [cell.dose for cell in cells]
    assert measure_kl(tiny_subject, treatments, found, observer=SilentObserver()) == pytest.approx([0.2, 0.1] * 5, rel=0.01)
    assert [cell.doses.kl for cell in cells if cell.doses] == pytest.approx([0.2, 0.1] * 5, rel=0.01)
    by_label = {cell.label: cell.doses for cell in made.cells if cell.doses is not None}
    for ranked in ("clt/0/1", "clt/1/2", "clt/0/3", "clt/2/4", "clt/1/5"):
        for dose in ("0.2", "-0.1"):
            assert by_label[f"random @{ranked} ×{dose}"].absolute == by_label[f"{ranked} ×{dose}"].absolute
    assert by_label["flipped clt/0/1 ×0.2"].absolute == -by_label["clt/0/1 ×0.2"].absolute  # type: ignore[operator]


def test_every_treatment_writes_where_the_sweep_does(plan: Callable[..., SweepPlan]) -> None:
    spans = ((2, 4), (-3, -1))
    for unit in (StrengthUnit.RESIDUAL, StrengthUnit.KL):
        made = plan(unit=unit, positions=Positions.SPANS, spans=spans, attention=Attention.FROZEN)
        places = {(each.positions, each.spans, each.attention) for cell in made.cells if (each := cell.treatment) is not None}
        assert places == {(Positions.SPANS, spans, Attention.FROZEN)}


def test_few_candidates_have_further_random_directions(plan: Callable[..., SweepPlan], ranking: Ranking) -> None:
    made = plan(replace(ranking, features=ranking.features[:2]), strengths=(1.0,))
    random = {cell.label: cell.treatment.direction for cell in of_arm(made, ArmKind.RANDOM) if cell.treatment is not None}
    assert random == {
        "random @clt/0/1 ×1": "random/0@clt/0/1",
        "random @clt/1/2 ×1": "random/1@clt/1/2",
        "random 2 @clt/0/1 ×1": "random/2@clt/0/1",
    }


@pytest.mark.parametrize(
    ("unit", "strengths"),
    [(StrengthUnit.RESIDUAL, {0.5, 1.0}), (StrengthUnit.MAX_ACTIVATION, {0.5, 1.0}), (StrengthUnit.KL, {0.1, 0.5})],
)
def test_no_strengths_take_the_units_own(plan: Callable[..., SweepPlan], unit: StrengthUnit, strengths: set[float]) -> None:
    made = plan(strengths=(), unit=unit)
    used = {cell.treatment.strength for cell in made.cells if cell.treatment is not None and cell.arm is ArmKind.CANDIDATE}
    assert used == strengths == {*DEFAULT_STRENGTHS[unit]}


def test_an_activation_has_no_strengths_of_its_own(plan: Callable[..., SweepPlan]) -> None:
    with pytest.raises(UsageError, match="No strengths in the unit 'absolute'.*--strengths"):
        plan(strengths=(), unit=StrengthUnit.ABSOLUTE)


def test_directions_without_unrelated_ones_have_random_ones_in_their_place(
    plan: Callable[..., SweepPlan], tiny_vector_subject: Subject, ranking: Ranking
) -> None:
    features = [FeatureId("vector", 0, 2), FeatureId("vector", 2, 1)]
    two = replace(ranking, features=tuple(replace(each, feature=of) for each, of in zip(ranking.features, features, strict=False)))
    own = observe(tiny_vector_subject.model, tiny_vector_subject.dictionary, tiny_vector_subject.corpus)
    measured = scales(tiny_vector_subject, own)

    def random_of(*unrelated: FeatureId) -> list[str]:
        made = plan(two, subject=tiny_vector_subject, scales=measured, strengths=(1.0,), unrelated=unrelated)
        assert len(of_arm(made, ArmKind.UNRELATED)) == len(unrelated)
        return [cell.treatment.direction for cell in of_arm(made, ArmKind.RANDOM) if cell.treatment is not None]

    expected = [f"random/{k}@{features[k % 2]}" for k in range(6)]
    assert random_of() == expected
    assert random_of(FeatureId("vector", 0, 4), FeatureId("vector", 0, 5)) == expected[:4]
    assert random_of(*(FeatureId("vector", 0, index) for index in (0, 4, 5))) == expected[:3]


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"samples": -1},
        {"strengths": (0.0, 1.0)},
        {"strengths": (1.0, 1.0)},
        {"strengths": (float("nan"),)},
        {"temperature": -1.0},
        {"unrelated": UNRELATED[:2]},
        {"unit": StrengthUnit.FACTOR, "strengths": (1.5,)},
        {"unit": StrengthUnit.FACTOR, "strengths": ()},
        {"unit": StrengthUnit.KL, "strengths": (1e6,)},
        {"spans": ((2, 4),)},
        {"positions": Positions.SPANS},
    ],
)
def test_plans_that_show_nothing_are_refused(plan: Callable[..., SweepPlan], wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan(**wrong)


def test_a_ranking_without_candidates_is_refused(plan: Callable[..., SweepPlan], ranking: Ranking) -> None:
    with pytest.raises(UsageError, match="Nothing to steer"):
        plan(replace(ranking, features=()))


class Stopped:
    """Stops at once."""

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        return True


def test_it_stops_when_asked(plan: Callable[..., SweepPlan]) -> None:
    with pytest.raises(Interrupted):
        plan(observer=Stopped())


def test_an_estimate_is_a_time(plan: Callable[..., SweepPlan], tiny_subject: Subject, scenario: Scenario, measured: Scales) -> None:
    small = estimate(tiny_subject, plan(), scenario, measured)
    assert 0 < small.seconds < 600
