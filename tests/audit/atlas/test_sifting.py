"""Sifting loses no pair that may be among the strongest, and keeps few others."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audit.atlas.sifting import Ends, may_lead


@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from([0.0, 1e-3, 0.5]), st.sampled_from([0.0, 0.8]), st.booleans())
def test_whatever_the_errors_are_the_strongest_are_there(seed: int, top: int, error: float, floor: float, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(7, 9))
    if tied:
        true = np.round(true)
    row, column = np.nonzero(rng.random(true.shape) < 0.8)
    values = true[row, column]
    slack = error * rng.random(len(values))
    estimate = values + slack * rng.uniform(-1, 1, len(values))
    ends = [Ends(place=row.astype(np.int32), floor=np.full((7, 2), floor, dtype=np.float32))]
    ends.append(Ends(place=column.astype(np.int32), floor=np.zeros((9, 2), dtype=np.float32)))
    found = set(may_lead(estimate, slack, tuple(ends), top).tolist())
    for place, least in ((row, np.float32(floor)), (column, 0.0)):
        for group in np.unique(place):
            for sign in (1, -1):
                mine = [k for k in np.flatnonzero(place == group) if sign * values[k] > 0 and np.float32(sign * values[k]) >= least]
                sizes = sorted((sign * values[k] for k in mine), reverse=True)
                assert {k for k in mine if sign * values[k] >= sizes[min(top, len(sizes)) - 1]} <= found


def test_without_error_only_the_strongest_of_either_end_are_left() -> None:
    true = np.arange(1.0, 101.0).reshape(10, 10)
    row, column = np.indices((10, 10))
    floors = np.zeros((10, 2), dtype=np.float32)
    ends = tuple(Ends(place=place.ravel().astype(np.int32), floor=floors) for place in (row, column))
    found = may_lead(true.ravel(), np.zeros(100), ends, 2)
    assert {(k // 10, k % 10) for k in found.tolist()} == {(i, j) for i in range(10) for j in range(10) if j >= 8 or i >= 8}
    raised = Ends(place=ends[0].place, floor=np.full((10, 2), 95, dtype=np.float32))
    assert may_lead(true.ravel(), np.zeros(100), (raised,), 2).tolist() == [98, 99]
