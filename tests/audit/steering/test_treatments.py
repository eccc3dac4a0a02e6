from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import UsageError
from audit.ledger import identity
from audit.records import Attention, Operation, Positions, StrengthUnit, Treatment
from audit.steering.treatments import (
    UNITS,
    ablate,
    additive,
    check,
    check_form,
    clamp,
    digest,
    multiplicative,
    parse,
    parse_direction,
    render,
)
from audit.subject import Subject

features = st.builds("clt/{}/{}".format, st.integers(0, 99), st.integers(0, 10**6))
directions = features | st.builds("random/{}@{}".format, st.integers(0, 10**9), features)
strengths = st.floats(allow_nan=False, allow_infinity=False)
layers = st.sets(st.integers(0, 99), min_size=1).map(lambda found: tuple(sorted(found)))


@st.composite
def rising(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Spans from 0 on, no two of which touch."""
    spans, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=4)):
        spans.append((at + gap, at + gap + length))
        at = spans[-1][1] + 2
    return tuple(spans)


@st.composite
def listed(draw: st.DrawFn) -> tuple[tuple[int, int], ...]:
    """Spans from the start, then spans from the end of the prompt."""
    from_end = tuple((-1 - last, -1 - first) for first, last in reversed(draw(rising())))
    return draw(rising()) + from_end


@st.composite
def treatments(draw: st.DrawFn) -> Treatment:
    """Every valid treatment."""
    operation = draw(st.sampled_from(Operation))
    spans = draw(st.just(()) | listed())
    return Treatment(
        direction=draw(directions if operation is Operation.ADDITIVE else features),
        operation=operation,
        strength=0.0 if operation is Operation.ABLATE else draw(strengths),
        unit=draw(st.sampled_from(UNITS[operation])),
        layers=draw(layers),
        positions=Positions.SPANS if spans else draw(st.sampled_from([Positions.PROMPT, Positions.GENERATED, Positions.ALL])),
        dictionary_sha256="abc",
        attention=draw(st.sampled_from(Attention)),
        spans=spans,
    )


def read(text: str) -> Treatment:
    return parse(text, dictionary_sha256="abc")


@given(treatments())
def test_string_form_round_trips(treatment: Treatment) -> None:
    check_form(treatment)
    assert read(render(treatment)) == treatment


@given(treatments(), treatments())
def test_digest_is_the_one_that_the_ledger_would_give_and_tells_treatments_apart(one: Treatment, other: Treatment) -> None:
    assert digest(one) == identity.digest(identity.dump(one))
    assert (digest(read(render(one))) == digest(read(render(other)))) == (one == other)


FULL = Treatment(
    direction="clt/2/81",
    operation=Operation.ADDITIVE,
    strength=0.5,
    unit=StrengthUnit.RESIDUAL,
    layers=(2, 3, 4),
    positions=Positions.ALL,
    dictionary_sha256="abc",
)


@pytest.mark.parametrize(
    ("text", "treatment"),
    [
        ("add 0.5 residual clt/2/81 @2-4 all", FULL),
        ("add -0.25 kl clt/2/81 @2-4 generated", replace(FULL, strength=-0.25, unit=StrengthUnit.KL, positions=Positions.GENERATED)),
        (
            "add 7 absolute random/3@clt/2/81 @2 all",
            replace(FULL, strength=7.0, unit=StrengthUnit.ABSOLUTE, direction="random/3@clt/2/81", layers=(2,)),
        ),
        (
            "multiply 0 factor clt/2/81 @2,4 prompt",
            replace(
                FULL, operation=Operation.MULTIPLICATIVE, strength=0.0, unit=StrengthUnit.FACTOR, layers=(2, 4), positions=Positions.PROMPT
            ),
        ),
        (
            "clamp 3 absolute clt/2/81 @2-4 all frozen",
            replace(FULL, operation=Operation.CLAMP, strength=3.0, unit=StrengthUnit.ABSOLUTE, attention=Attention.FROZEN),
        ),
        (
            "clamp 1 max_activation clt/2/81 @2-4 all",
            replace(FULL, operation=Operation.CLAMP, strength=1.0, unit=StrengthUnit.MAX_ACTIVATION),
        ),
        (
            "ablate clt/2/81 @2-4 spans:7,12..40,-8..-1",
            replace(
                FULL,
                operation=Operation.ABLATE,
                strength=0.0,
                unit=StrengthUnit.ABSOLUTE,
                positions=Positions.SPANS,
                spans=((7, 7), (12, 40), (-8, -1)),
            ),
        ),
    ],
)
def test_string_forms(text: str, treatment: Treatment) -> None:
    assert read(text) == treatment
    assert render(treatment) == text


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("ablate clt/2/81 @2-4 spans:7", "ablate clt/2/81 @2-4 spans:7..7"),
        ("ablate clt/2/81 @2-4 all", "ablate  clt/02/081 @2,3,4 all free"),
        ("add 0 residual random/3@clt/2/81 @2-4 all", "add -0.0 residual random/03@clt/2/81 @2-3,4 all"),
        ("add 0.5 kl clt/2/81 @10 all", "add +5e-1 kl clt/2/81 @10-10 all free"),
    ],
)
def test_equal_treatments_written_differently_have_equal_digests(text: str, other: str) -> None:
    assert read(text) == read(other)
    assert digest(read(text)) == digest(read(other))
    assert render(read(other)) == text


def test_a_whole_number_has_the_digest_of_the_same_float() -> None:
    assert digest(replace(FULL, strength=2)) == digest(replace(FULL, strength=2.0))


def test_constructors_give_what_their_string_says(tiny_subject: Subject) -> None:
    dictionary = tiny_subject.dictionary
    spans = {"positions": Positions.SPANS, "spans": [(3, 5), (-1, -1)]}
    made = {
        "add 0.5 residual clt/0/7 @0-2 all": additive(dictionary, "clt/0/7", 0.5),
        "add 2 kl clt/0/7 @0,2 all frozen": additive(
            dictionary, "clt/0/7", 2, unit=StrengthUnit.KL, layers=(0, 2), attention=Attention.FROZEN
        ),
        "add 0 absolute clt/0/7 @0-2 spans:3..5,-1": additive(dictionary, "clt/0/7", -0.0, unit=StrengthUnit.ABSOLUTE, **spans),
        "multiply 0 factor clt/1/7 @1-2 prompt": multiplicative(dictionary, "clt/1/7", 0, positions=Positions.PROMPT),
        "multiply -1 factor clt/1/7 @1-2 spans:3..5,-1 frozen": multiplicative(
            dictionary, "clt/1/7", -1, attention=Attention.FROZEN, **spans
        ),
        "clamp 3 absolute clt/1/7 @1-2 all": clamp(dictionary, "clt/1/7", 3),
        "clamp -1.5 max_activation clt/1/7 @2 spans:3..5,-1 frozen": clamp(
            dictionary, "clt/1/7", -1.5, unit=StrengthUnit.MAX_ACTIVATION, layers=[2], attention=Attention.FROZEN, **spans
        ),
        "ablate clt/1/7 @1-2 generated": ablate(dictionary, "clt/01/7", positions=Positions.GENERATED),
        "ablate clt/1/7 @1 spans:3..5,-1 frozen": ablate(dictionary, "clt/1/7", layers=(1,), attention=Attention.FROZEN, **spans),
    }
    for text, treatment in made.items():
        assert render(treatment) == text
        assert treatment == parse(text, dictionary_sha256=dictionary.sha256)
        assert digest(treatment) == digest(parse(text, dictionary_sha256=dictionary.sha256))


def test_default_layers_are_all_that_the_feature_writes(tiny_subject: Subject, tiny_plt_subject: Subject) -> None:
    assert additive(tiny_subject.dictionary, "random/3@clt/1/7", 1).layers == (1, 2)
    assert additive(tiny_plt_subject.dictionary, "plt/1/7", 1).layers == (1,)
    assert clamp(tiny_subject.dictionary, "clt/1/7", 1).layers == ablate(tiny_subject.dictionary, "clt/1/7").layers == (1, 2)


def test_direction_names_the_feature_that_it_takes_its_norms_from() -> None:
    direction = parse_direction("random/5@clt/2/81")
    assert (str(direction), str(direction.feature), direction.random_seed) == ("random/5@clt/2/81", "clt/2/81", 5)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no operation; there are add, multiply, clamp, ablate"),
        ("sub 0.5 residual clt/2/81 @2-4 all", "'sub' is no operation"),
        ("add 0.5 residual clt/2/81 @2-4", "followed by strength, unit, direction, layers, positions .* here by 4 parts"),
        ("add 0.5 residual clt/2/81 @2-4 all free really", "here by 7 parts"),
        ("add 0.5 residual clt/2/81 @2-4 all melted", "'melted' says nothing about attention; there are free, frozen"),
        ("add 0.5 residual clt/2/81 @2-4 sometimes", "'sometimes' names no positions; there are prompt, generated, all, spans"),
        ("add half residual clt/2/81 @2-4 all", "its strength, 'half', is not a finite number"),
        ("add nan residual clt/2/81 @2-4 all", "'nan', is not a finite number"),
        ("add inf residual clt/2/81 @2-4 all", "'inf', is not a finite number"),
        ("add 1_0 residual clt/2/81 @2-4 all", "'1_0', is not a finite number"),
        ("add 1e999 residual clt/2/81 @2-4 all", "inf, is not a finite number"),
        ("add 0.5 volts clt/2/81 @2-4 all", "'volts' is no unit"),
        ("add 0.5 residual clt/2 @2-4 all", "does not name a feature"),
        ("add 0.5 residual random/x@clt/2/81 @2-4 all", "does not name a feature"),
        ("add 0.5 residual clt/2/81 2-4 all", "'2-4' does not name layers"),
        ("add 0.5 residual clt/2/81 @ all", "'@' does not name layers"),
        ("add 0.5 residual clt/2/81 @0-99999999999 all", "does not name layers"),
        ("add 0.5 residual clt/2/81 @4-2 all", "the layers 4-2 are out of order"),
        ("add 0.5 residual clt/2/81 @3,3 all", "rising order, each once"),
        ("add 0.5 residual clt/2/81 @3,2 all", "rising order, each once"),
        ("multiply 0.5 factor random/0@clt/2/81 @2-4 all", "a random direction has no activation"),
        ("clamp 0.5 absolute random/0@clt/2/81 @2-4 all", "a random direction has no activation"),
        ("ablate random/0@clt/2/81 @2-4 all", "a random direction has no activation"),
        ("ablate 0 absolute clt/2/81 @2-4 all", "'ablate' is followed by direction, layers, positions .* here by 5 parts"),
        ("ablate", "here by 0 parts"),
        ("add 1 residual clt/2/81 @2-4 spans", "lists none"),
        ("add 1 residual clt/2/81 @2-4 spans:", "'' is no span"),
        ("add 1 residual clt/2/81 @2-4 spans:7,", "'' is no span"),
        ("add 1 residual clt/2/81 @2-4 spans:7-9", "'7-9' is no span"),
        ("add 1 residual clt/2/81 @2-4 all:7..9", "lists spans, 7..9, beside the positions 'all'"),
        ("add 1 residual clt/2/81 @2-4 spans:9..7", "the span 9..7 is empty"),
        ("add 1 residual clt/2/81 @2-4 spans:-1..-3", "the span -1..-3 is empty"),
        ("add 1 residual clt/2/81 @2-4 spans:5..-1", "counts from both ends"),
        ("add 1 residual clt/2/81 @2-4 spans:-1..5", "counts from both ends"),
        ("add 1 residual clt/2/81 @2-4 spans:7..9,1..3", "7..9 and 1..3 are out of order"),
        ("add 1 residual clt/2/81 @2-4 spans:-2,-8..-5", "-2 and -8..-5 are out of order"),
        ("add 1 residual clt/2/81 @2-4 spans:-2,7", "-2 and 7 are out of order; those from the start come first"),
        ("add 1 residual clt/2/81 @2-4 spans:7..9,9..12", "7..9 and 9..12 overlap"),
        ("add 1 residual clt/2/81 @2-4 spans:7..9,1..8", "7..9 and 1..8 overlap"),
        ("add 1 residual clt/2/81 @2-4 spans:7..9,7..9", "7..9 and 7..9 overlap"),
        ("add 1 residual clt/2/81 @2-4 spans:7..9,10", "7..9 and 10 touch; write them as one"),
    ],
)
def test_incomplete_and_contradictory_treatments_are_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read(text)


VERBS = {
    Operation.ADDITIVE: "add",
    Operation.MULTIPLICATIVE: "multiply",
    Operation.CLAMP: "clamp",
}


@pytest.mark.parametrize("operation", VERBS)
@pytest.mark.parametrize("unit", StrengthUnit)
def test_an_operation_takes_its_own_units(operation: Operation, unit: StrengthUnit) -> None:
    allowed = {
        Operation.ADDITIVE: {"residual", "max_activation", "absolute", "kl"},
        Operation.MULTIPLICATIVE: {"factor"},
        Operation.CLAMP: {"absolute", "max_activation"},
    }
    text = f"{VERBS[operation]} 0.5 {unit} clt/2/81 @2-4 all"
    if unit in allowed[operation]:
        assert read(text) == replace(FULL, operation=operation, unit=unit)
        return
    with pytest.raises(UsageError, match=f"'{VERBS[operation]}' cannot have the unit '{unit}'; it takes "):
        read(text)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"strength": float("nan")}, "nan, is not a finite number"),
        ({"strength": float("-inf")}, "-inf, is not a finite number"),
        ({"layers": ()}, "names no layers"),
        ({"layers": (-1, 2)}, "not numbers from 0"),
        ({"layers": (2, 10_000)}, "not numbers from 0"),
        ({"direction": "clt/02/81"}, "its direction is written in full as clt/2/81"),
        ({"positions": Positions.SPANS}, "lists none"),
        ({"spans": ((1, 2),)}, "lists spans, 1..2, beside the positions 'all'"),
        ({"operation": Operation.ABLATE, "unit": StrengthUnit.ABSOLUTE}, "takes no strength and no unit, but it has 0.5 absolute"),
        ({"operation": Operation.ABLATE, "strength": 0.0}, "takes no strength and no unit, but it has 0 residual"),
    ],
)
def test_records_that_no_string_gives_are_refused(wrong: dict[str, object], why: str) -> None:
    check_form(FULL)
    with pytest.raises(UsageError, match=why):
        check_form(replace(FULL, **wrong))  # type: ignore[arg-type]


def test_treatments_that_do_not_fit_the_dictionary_are_refused(tiny_subject: Subject) -> None:
    good = additive(tiny_subject.dictionary, "clt/1/7", 0.5)
    check(good, tiny_subject.dictionary)
    for bad in (
        replace(good, layers=(0, 1)),
        replace(good, layers=(3,)),
        replace(good, direction="clt/1/24"),
        replace(good, dictionary_sha256="x"),
    ):
        with pytest.raises(UsageError):
            check(bad, tiny_subject.dictionary)
    with pytest.raises(UsageError, match="writes to layers 1 to 2 only"):
        additive(tiny_subject.dictionary, "clt/1/7", 0.5, layers=(0,))
    with pytest.raises(UsageError, match="lists spans"):
        additive(tiny_subject.dictionary, "clt/1/7", 0.5, spans=((1, 2),))
    with pytest.raises(UsageError, match="a random direction has no activation"):
        ablate(tiny_subject.dictionary, "random/0@clt/1/7")
