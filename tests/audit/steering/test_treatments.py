from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import UsageError
from audit.ledger import identity
from audit.records import Operation, Positions, StrengthUnit, Treatment
from audit.steering.treatments import additive, check, digest, multiplicative, parse, parse_direction, render
from audit.subject import Subject

features = st.builds("clt/{}/{}".format, st.integers(0, 99), st.integers(0, 10**6))
directions = features | st.builds("random/{}@{}".format, st.integers(0, 10**9), features)
finite = st.floats(allow_nan=False, allow_infinity=False)
common = {
    "layers": st.sets(st.integers(0, 99), min_size=1).map(lambda found: tuple(sorted(found))),
    "positions": st.sampled_from(Positions),
    "dictionary_sha256": st.just("abc"),
    "strength": finite,
}
treatments = st.builds(
    Treatment,
    direction=directions,
    operation=st.just(Operation.ADDITIVE),
    unit=st.sampled_from([StrengthUnit.RESIDUAL, StrengthUnit.MAX_ACTIVATION]),
    **common,
) | st.builds(Treatment, direction=features, operation=st.just(Operation.MULTIPLICATIVE), unit=st.just(StrengthUnit.FACTOR), **common)


@given(treatments)
def test_string_form_round_trips(treatment: Treatment) -> None:
    assert parse(render(treatment), dictionary_sha256="abc") == treatment


@given(treatments)
def test_digest_is_the_one_that_the_ledger_would_give(treatment: Treatment) -> None:
    assert digest(treatment) == identity.digest(identity.dump(treatment))


def test_render_is_short(tiny_subject: Subject) -> None:
    assert render(additive(tiny_subject.dictionary, "clt/0/7", 0.5)) == "add 0.5 residual clt/0/7 @0-2 all"
    assert render(additive(tiny_subject.dictionary, "clt/0/7", 2, layers=(0, 2))) == "add 2 residual clt/0/7 @0,2 all"
    assert (
        render(multiplicative(tiny_subject.dictionary, "clt/1/7", 0, positions=Positions.PROMPT)) == "multiply 0 factor clt/1/7 @1-2 prompt"
    )


def test_default_layers_are_all_that_the_feature_writes(tiny_subject: Subject, tiny_plt_subject: Subject) -> None:
    assert additive(tiny_subject.dictionary, "random/3@clt/1/7", 1).layers == (1, 2)
    assert additive(tiny_plt_subject.dictionary, "plt/1/7", 1).layers == (1,)


def test_direction_names_the_feature_that_it_takes_its_norms_from() -> None:
    direction = parse_direction("random/5@clt/2/81")
    assert (str(direction), str(direction.feature), direction.random_seed) == ("random/5@clt/2/81", "clt/2/81", 5)


@pytest.mark.parametrize(
    "text",
    [
        "add 0.5 residual clt/2/81 @2-4",
        "sub 0.5 residual clt/2/81 @2-4 all",
        "add 0.5 absolute clt/2/81 @2-4 all",
        "add 0.5 residual clt/2/81 @2-4 sometimes",
        "add half residual clt/2/81 @2-4 all",
        "add nan residual clt/2/81 @2-4 all",
        "add inf residual clt/2/81 @2-4 all",
        "add 0.5 residual clt/2 @2-4 all",
        "add 0.5 residual random/x@clt/2/81 @2-4 all",
        "add 0.5 residual clt/2/81 2-4 all",
        "add 0.5 residual clt/2/81 @4-2 all",
        "add 0.5 residual clt/2/81 @3,3 all",
        "add 0.5 factor clt/2/81 @2-4 all",
        "multiply 0.5 residual clt/2/81 @2-4 all",
        "multiply 0.5 factor random/0@clt/2/81 @2-4 all",
    ],
)
def test_incomplete_and_contradictory_treatments_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text, dictionary_sha256="abc")


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
