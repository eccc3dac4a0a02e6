"""Sums of real numbers that do not depend on the order or the grouping of their terms.

Adding floating-point numbers is not associative: two splits of a corpus would give two sums. Every term is therefore rounded once, to a
multiple of 2^-40, and kept as two integers, the whole part and the number of units. Integers add exactly in any order, so the sum of the
rounded terms is the same to the last bit however they are dealt out.

The error is that of rounding the terms alone, and absolute: at most 2^-41 (4.5e-13) each, however small a term is. The square of a float32
is exact in float64 before it is rounded. Relative to a term, that is at most

====================  ============  ========================
activations of about  in their sum  in that of their squares
====================  ============  ========================
1e-2                  4.5e-11       4.5e-9
1e-4                  4.5e-9        4.5e-5
====================  ============  ========================

and no more of a sum of such terms, since all are positive. Terms below 2^-41, such as squares of activations below 6.7e-7, become 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.errors import SubjectError

UNIT_BITS = 40
"""A unit is 2^-40."""
_MASK = (1 << UNIT_BITS) - 1
_AT_ONCE = 1 << 22
"""Terms between two carries: so many units of at most 2^40 cannot overflow an int64."""
_LARGEST = 2.0**62

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FixedSums:
    """n sums, each ``whole + units / 2^40``."""

    whole: Integers
    """(n,)."""
    units: Integers
    """(n,), 0 ≤ units < 2^40: with the carry done, a sum has one form only."""

    @classmethod
    def zeros(cls, n: int) -> FixedSums:
        """n sums of nothing."""
        return cls(whole=np.zeros(n, dtype=np.int64), units=np.zeros(n, dtype=np.int64))

    def plus(self, other: FixedSums) -> FixedSums:
        """Sums of both.

        Raises:
            SubjectError: one is too large to be kept.
        """
        return _carried(self.whole + other.whole, self.units + other.units)

    def values(self) -> Floats:
        """(n,) in floating point."""
        return self.whole.astype(np.float64) + np.ldexp(self.units.astype(np.float64), -UNIT_BITS)

    def at(self, places: NDArray[np.intp]) -> FixedSums:
        """Some of them."""
        return FixedSums(whole=self.whole[places], units=self.units[places])

    def grouped(self, starts: NDArray[np.intp]) -> FixedSums:
        """Sums of neighbouring sums, one a group; ``starts`` are their first places."""
        if not len(starts):
            return FixedSums.zeros(0)
        return _carried(np.add.reduceat(self.whole, starts), np.add.reduceat(self.units, starts))


def fixed_sums(terms: Floats, place: NDArray[np.integer], n: int) -> FixedSums:
    """Sum terms by place.

    Args:
        terms: (m,) ≥ 0.
        place: (m,) which of the sums each belongs to.
        n: number of sums.

    Raises:
        SubjectError: a term is not finite, or a sum is too large to be kept.
    """
    if not float(terms.sum()) < _LARGEST:  # true for what is not a number, too
        raise _unkept()
    found = FixedSums.zeros(n)
    for start in range(0, len(terms), _AT_ONCE):
        some, at = terms[start : start + _AT_ONCE], place[start : start + _AT_ONCE]
        floor = np.floor(some)
        whole, units = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        np.add.at(whole, at, floor.astype(np.int64))
        np.add.at(units, at, np.rint(np.ldexp(some - floor, UNIT_BITS)).astype(np.int64))
        found = found.plus(_carried(whole, units))
    return found


def _carried(whole: Integers, units: Integers) -> FixedSums:
    whole = whole + (units >> UNIT_BITS)
    if (np.abs(whole.astype(np.float64)) >= _LARGEST).any():
        raise _unkept()
    return FixedSums(whole=whole, units=units & _MASK)


def _unkept() -> SubjectError:
    return SubjectError(
        "The activations cannot be summed",
        "An activation is not a finite number, or their sum exceeds 2^62.",
        "Open the model with --dtype float32, and check the dictionary with 'ulterior doctor'.",
    )
