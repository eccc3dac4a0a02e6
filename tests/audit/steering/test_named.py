from __future__ import annotations

from dataclasses import replace

import pytest

from audit.errors import UsageError
from audit.events import SilentObserver
from audit.records import ArmKind, Attention, AuditConfig, Cell, FeatureId, Operation, Positions, StrengthUnit
from audit.steering.doses import scales_of
from audit.steering.named import Place, check_named, further_cells, named_features, named_treatments, place_of, read_positions
from audit.steering.strengths import Scales, scales, strength_activation, written_norm
from audit.steering.treatments import ablate, additive, check, clamp, multiplicative, render
from audit.subject import Subject, observe

CONFIG = AuditConfig(scenario="blackmail")
SPANS = Place(positions=Positions.SPANS, spans=((3, 9), (-4, -1)), attention=Attention.FROZEN)
FEATURES = [FeatureId("clt", 0, 2), FeatureId("clt", 1, 3)]


@pytest.fixture(scope="module")
def measured(tiny_subject: Subject) -> Scales:
    return scales(tiny_subject, observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus))


def cells_of(subject: Subject, config: AuditConfig, measured: Scales, place: Place = SPANS) -> tuple[Cell, ...]:
    return further_cells(subject, config, FEATURES, place, measured, observer=SilentObserver())


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("prompt", Place(positions=Positions.PROMPT)),
        ("generated", Place(positions=Positions.GENERATED)),
        ("all", Place(positions=Positions.ALL)),
        ("spans:7", Place(positions=Positions.SPANS, spans=((7, 7),))),
        ("spans:3..9,-4..-1", replace(SPANS, attention=Attention.FREE)),
    ],
)
def test_positions_are_read_as_in_a_treatment(text: str, place: Place) -> None:
    assert read_positions(text) == place


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'': it has to be one word"),
        ("all frozen", "'all frozen': it has to be one word"),
        ("nowhere", "'nowhere': 'nowhere' names no positions"),
        ("spans:9..3", "the span 9..3 is empty"),
        ("spans:3..9,5..8", "overlap"),
    ],
)
def test_other_positions_are_refused_for_what_is_wrong_with_them(text: str, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_positions(text)
    assert refused.value.title == "Positions refused"
    assert why in refused.value.why
    assert "clt/0/0" not in str(refused.value)


def test_the_callers_positions_come_before_the_scenarios() -> None:
    assert place_of(CONFIG, "generated") == Place(positions=Positions.GENERATED)
    given = replace(CONFIG, positions="spans:3..9,-4..-1", attention="frozen")
    assert place_of(given, "generated") == SPANS


def test_features_of_treatments_come_after_those_that_are_named() -> None:
    treatments = ("ablate clt/0/2 @0 all", "add 1 residual random/4@clt/2/1 @2 all", "ablate clt/1/3 @1 all", "ablate clt/0/2 @0 all")
    config = replace(CONFIG, features=("clt/1/3",), treatments=treatments)
    assert [str(each) for each in named_features(config)] == ["clt/1/3", "clt/0/2", "clt/2/1"]
    assert [render(each) for each in named_treatments(config, "hash")] == list(treatments[:3])
    assert {each.dictionary_sha256 for each in named_treatments(config, "hash")} == {"hash"}
    assert named_features(CONFIG) == named_treatments(CONFIG, "hash") == ()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (replace(CONFIG, features=("clt/0/24",)), "clt/0/24"),
        (replace(CONFIG, features=("plt/0/2",)), "plt/0/2"),
        (replace(CONFIG, treatments=("ablate plt/0/2 @0 all",)), "plt/0/2"),
        (replace(CONFIG, treatments=("ablate clt/1/3 @0-1 all",)), "clt/1/3 writes to layers 1 to 2 only"),
    ],
)
def test_what_does_not_fit_the_dictionary_is_refused(tiny_subject: Subject, config: AuditConfig, why: str) -> None:
    check_named(replace(CONFIG, features=("clt/1/3",), treatments=("ablate clt/1/3 @1-2 all",)), tiny_subject.dictionary)
    with pytest.raises(UsageError, match=why):
        check_named(config, tiny_subject.dictionary)


def test_every_feature_has_a_cell_of_each_kind_at_the_sweeps_place(tiny_subject: Subject, measured: Scales) -> None:
    cells = cells_of(tiny_subject, replace(CONFIG, factors=(0.0, -1.0), clamps=(2.0,), ablate=True), measured)
    assert [cell.label for cell in cells] == [
        f"{feature} {name}" for feature in FEATURES for name in ("factor 0", "factor -1", "clamp 2", "ablated")
    ]
    where = {"positions": Positions.SPANS, "spans": SPANS.spans, "attention": Attention.FROZEN}
    dictionary = tiny_subject.dictionary
    assert [cell.treatment for cell in cells[4:]] == [
        multiplicative(dictionary, "clt/1/3", 0.0, **where),  # type: ignore[arg-type]
        multiplicative(dictionary, "clt/1/3", -1.0, **where),  # type: ignore[arg-type]
        clamp(dictionary, "clt/1/3", 2.0, unit=StrengthUnit.MAX_ACTIVATION, **where),  # type: ignore[arg-type]
        ablate(dictionary, "clt/1/3", **where),  # type: ignore[arg-type]
    ]
    for cell in cells:
        assert cell.treatment is not None
        check(cell.treatment, dictionary)
        assert (cell.arm, cell.dose, cell.written_norm) == (ArmKind.CANDIDATE, None, None)
        assert cell.doses is not None
        assert cell.doses.kl is not None
        assert cell.doses.kl > 0
    assert cells[6].doses is not None
    assert (cells[6].doses.max_activation, cells[6].doses.absolute) == (2.0, 2.0 * measured.max_of(FEATURES[1]))


def test_a_treatment_in_words_keeps_its_own_place_and_is_labelled_by_its_words(tiny_subject: Subject, measured: Scales) -> None:
    words = ("add 0.5 residual clt/1/3 @2 generated", "add -0.05 kl clt/1/3 @1-2 all")
    fixed, matched = cells_of(tiny_subject, replace(CONFIG, treatments=words), measured)
    assert (fixed.label, matched.label) == words
    wanted = additive(tiny_subject.dictionary, "clt/1/3", 0.5, layers=[2], positions=Positions.GENERATED)
    assert fixed.treatment == wanted
    assert fixed.written_norm == written_norm(tiny_subject.dictionary, wanted, measured) == pytest.approx(0.5 * measured.residual_norm[1])
    assert matched.doses is not None
    assert matched.doses.kl == pytest.approx(0.05, rel=0.01)
    assert matched.doses.absolute is not None
    assert matched.doses.absolute < 0


def test_a_divergence_is_recovered_from_the_cell(tiny_subject: Subject, measured: Scales) -> None:
    from audit.records import SweepPlan

    cells = cells_of(tiny_subject, replace(CONFIG, treatments=("add 0.05 kl clt/1/3 @1-2 all",)), measured)
    plan = SweepPlan(cells=cells, variants=(0,), samples_per_variant=1, seed=0, max_new_tokens=1, temperature=1.0)
    (cell,) = cells
    assert cell.treatment is not None
    assert cell.doses is not None
    assert strength_activation(tiny_subject.dictionary, cell.treatment, scales_of(measured, plan)) == cell.doses.absolute


def test_nothing_named_adds_nothing(tiny_subject: Subject, measured: Scales) -> None:
    assert cells_of(tiny_subject, CONFIG, measured) == ()
    only = cells_of(tiny_subject, replace(CONFIG, ablate=True), measured, Place(positions=Positions.ALL))
    assert {cell.treatment.operation for cell in only if cell.treatment} == {Operation.ABLATE}
