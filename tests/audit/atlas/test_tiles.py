"""Tiles cover every pair of features that fires once, within the formula of the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from audit.atlas.tiles import CELL, Load, refuse_too_small, tiling
from audit.errors import UsageError

firing = st.lists(st.integers(0, 60), min_size=1, max_size=80).map(np.array)


@given(firing, firing, st.integers(1, 30), st.integers(1, 40), st.integers(20_000, 2_000_000))
def test_blocks_cover_all_that_fires_within_the_budget(sources: np.ndarray, targets: np.ndarray, support: int, d: int, memory: int) -> None:
    load = Load(sources=sources, targets=targets, n_tokens=60, d_model=d, top=4, support=support)
    try:
        cut = tiling(load, memory)
    except UsageError:
        assume(False)
        raise
    for blocks, counts, rare in (
        (cut.sources, sources, False),
        (cut.targets, targets, False),
        (cut.rare_sources, sources, True),
        (cut.rare_targets, targets, True),
    ):
        wanted = np.flatnonzero((counts > 0) & (counts < support) if rare else counts >= support)
        assert np.array_equal(np.concatenate([np.zeros(0, dtype=int), *blocks]), wanted)
    rows, columns = 48 * d + 40 * sources + 128 * 4, 16 * d + 48 * targets + 128 * 4
    kept = 8 * d * sum(map(len, cut.sources)) if cut.carried else 0
    largest = [
        max((int(cost[block].sum()) for block in blocks), default=0) for cost, blocks in ((rows, cut.sources), (columns, cut.targets))
    ]
    cells = max((len(i) * len(j) for i in (*cut.sources, *cut.rare_sources) for j in (*cut.targets, *cut.rare_targets)), default=0)
    assert load.fixed + kept + sum(largest) + CELL * cells <= memory


def test_a_budget_below_one_row_is_refused_with_one_that_does() -> None:
    load = Load(sources=np.full(50, 30), targets=np.full(50, 30), n_tokens=60, d_model=1000, top=4, support=5)
    with pytest.raises(UsageError, match="too small") as refused:
        refuse_too_small([load], 100_000)
    said = refused.value.instead.split()
    assert said[:2] == ["Give", "--memory"]
    tiling(load, int(said[2].removesuffix("MB")) * 10**6)
