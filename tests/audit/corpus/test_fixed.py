"""Sums are those of the rounded terms, exactly, in any order."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.corpus import fixed
from audit.corpus.fixed import FixedSums, fixed_sums
from audit.errors import SubjectError

TERMS = st.lists(st.tuples(st.floats(0, 1e6, width=32), st.integers(0, 3)), max_size=40)
UNIT = Fraction(1, 1 << 40)


def exact(value: float) -> Fraction:
    """The nearest multiple of a unit, even at halves."""
    return round(Fraction(value) / UNIT) * UNIT


def fractions(sums: FixedSums) -> list[Fraction]:
    return [int(whole) + int(units) * UNIT for whole, units in zip(sums.whole, sums.units, strict=True)]


def summed(terms: list[tuple[float, int]], n: int = 4) -> FixedSums:
    return fixed_sums(np.array([value for value, _ in terms], np.float64), np.array([place for _, place in terms], np.int64), n)


@pytest.mark.parametrize(("term", "relative"), [(1e-2, 4.6e-11), (1e-4, 4.6e-9), (1e-8, 4.6e-5)])
def test_the_error_of_a_small_term_is_as_documented(term: float, relative: float) -> None:
    terms = np.random.default_rng(0).uniform(term, 2 * term, 10_000)
    off = [abs(Fraction(value) - exact(value)) for value in terms.tolist()]
    assert max(off) <= UNIT / 2
    assert 0.5 * relative * term < max(off) <= relative * term
    total = fixed_sums(terms, np.zeros(len(terms), np.int64), 1)
    assert abs(fractions(total)[0] - sum(map(Fraction, terms.tolist()))) <= relative * sum(map(Fraction, terms.tolist()))


@given(TERMS)
def test_a_sum_is_that_of_the_rounded_terms(terms: list[tuple[float, int]]) -> None:
    found = summed(terms)
    expected = [sum((exact(value) for value, place in terms if place == at), Fraction(0)) for at in range(4)]
    assert fractions(found) == expected
    assert ((found.units >= 0) & (found.units < 1 << 40)).all()
    np.testing.assert_allclose(found.values(), [float(value) for value in expected], rtol=1e-15)


@given(TERMS, st.randoms(use_true_random=False), st.integers(0, 40))
def test_neither_order_nor_split_matters(terms: list[tuple[float, int]], draw: object, cut: int) -> None:
    shuffled = list(terms)
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    whole, parts = summed(terms), summed(shuffled[:cut]).plus(summed(shuffled[cut:]))
    assert whole.whole.tolist() == parts.whole.tolist()
    assert whole.units.tolist() == parts.units.tolist()


def test_floating_point_would_not_do() -> None:
    values = np.array([0.1, 0.7, 1e6, 0.3])
    orders = {float(sum(values[order].tolist())) for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 1, 0, 2])}
    assert len(orders) > 1
    assert len({float(fixed_sums(values[order], np.zeros(4, int), 1).values()[0]) for order in ([0, 1, 2, 3], [2, 0, 3, 1])}) == 1


def test_more_terms_than_an_int64_of_units_holds_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed, "_AT_ONCE", 3)
    found = fixed_sums(np.full(10, 0.75), np.zeros(10, int), 1)
    assert fractions(found) == [Fraction(15, 2)]


def test_a_term_that_rounds_up_to_one_carries() -> None:
    found = fixed_sums(np.array([1 - 2.0**-50]), np.zeros(1, int), 1)
    assert (found.whole.tolist(), found.units.tolist()) == ([1], [0])


def test_groups_of_sums_are_summed() -> None:
    found = fixed_sums(np.array([0.5, 0.75, 2.25]), np.arange(3), 3)
    assert fractions(found.grouped(np.array([0, 2]))) == [Fraction(5, 4), Fraction(9, 4)]
    assert len(found.grouped(np.zeros(0, np.intp)).whole) == 0
    assert fractions(found.at(np.array([2]))) == [Fraction(9, 4)]


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**62])
def test_what_cannot_be_kept_is_refused(value: float) -> None:
    with pytest.raises(SubjectError, match="not a finite number, or their sum exceeds"):
        fixed_sums(np.array([1.0, value]), np.zeros(2, int), 1)


def test_a_sum_that_grows_too_large_is_refused() -> None:
    half = fixed_sums(np.array([2.0**61]), np.zeros(1, int), 1)
    with pytest.raises(SubjectError, match="2\\^62"):
        half.plus(half)
