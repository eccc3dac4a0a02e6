"""Sums of decoders, sums over tokens and progress, each against something simpler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audit.atlas import cells
from audit.atlas.pair import exact
from audit.atlas.progress import Pace
from audit.atlas.sums import Sums
from audit.connections import coactivation, virtual_weights
from audit.events import Event, SilentObserver, StepProgress
from audit.records import FeatureId


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_sums_that_are_kept_equal_sums_that_are_made_again(make: Any, kind: str) -> None:
    dictionary = make(kind, "mlp_in", seed=3, n_layers=5, widths=(7,)).subject.dictionary
    blocks = (np.array([0, 2, 3]), np.array([5]))
    kept, fresh = (Sums(dictionary=dictionary, layer=1) for _ in range(2))
    for target in (2, 4):  # one is left out, as where a build goes on
        kept.keep(blocks, target)
        for block, start in zip(blocks, (0, 3), strict=True):
            found = kept.of(block, start, target)
            assert torch.equal(found, fresh.of(block, start, target))
            for place, index in enumerate(block):
                expected = virtual_weights.written(dictionary, FeatureId(kind, 1, int(index)), target)
                assert torch.allclose(found[place], expected, rtol=1e-12)
    kept.drop()
    kept.keep(blocks, 3)
    assert torch.equal(kept.of(blocks[1], 3, 3), fresh.of(blocks[1], 3, 3))


@given(st.integers(0, 2**31), st.sampled_from([0.1, 0.5, 1.0]), st.integers(1, 6), st.booleans())
def test_cells_are_the_supported_part_of_the_sums_over_tokens(make: Any, seed: int, density: float, support: int, normed: bool) -> None:
    made = make("plt", "mlp_in", seed=seed, n_layers=2, widths=(6,), n_tokens=20, density=density)
    sigma = made.activations.sigma[:, 1] if normed else None
    earlier, later = (cells.by_feature(layer) for layer in made.activations.layers)
    blocks = [np.flatnonzero(made.dense[layer].any(axis=0)) for layer in range(2)]
    some, others = cells.sources(earlier, blocks[0], sigma), cells.targets(later, blocks[1])
    found, n_unsupported = cells.meet(some, others, support)
    expected = coactivation.sums(earlier[:, blocks[0]].tocsr(), later[:, blocks[1]].tocsr(), sigma)
    enough = expected.n_coactive >= support
    assert set(zip(found.row.tolist(), found.column.tolist(), strict=True)) == set(
        zip(*(each.tolist() for each in np.nonzero(enough)), strict=True)
    )
    assert np.all(np.diff(found.row) >= 0)
    places = (found.row, found.column)
    assert np.array_equal(found.n_coactive, expected.n_coactive[places])
    assert found.gated == pytest.approx(expected.gated[places], rel=1e-12)
    assert found.expected == pytest.approx(expected.weighted[places] / expected.target_sum[found.column], rel=1e-12)
    assert np.array_equal(n_unsupported, np.count_nonzero((expected.n_coactive > 0) & ~enough, axis=1))
    assert np.array_equal(cells.n_meeting(some, others), np.count_nonzero(expected.n_coactive, axis=1))


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5))
def test_an_exact_virtual_weight_does_not_depend_on_its_neighbours(seed: int, n: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    directions, encoders = torch.from_numpy(rng.normal(size=(6, 37))), torch.from_numpy(rng.normal(size=(9, 37)).astype(np.float32))
    row, column = np.sort(rng.integers(0, 6, n)).astype(np.int32), rng.integers(0, 9, n).astype(np.int32)
    found = exact(directions, encoders, (row, column), most)
    assert found == pytest.approx((directions @ encoders.double().T).numpy()[row, column], rel=1e-10, abs=1e-12)
    assert found.tolist() == [exact(directions, encoders, (row[k : k + 1], column[k : k + 1]), 1)[0] for k in range(n)]


class Told(SilentObserver):
    def __init__(self) -> None:
        self.events: list[StepProgress] = []

    def notify(self, event: Event) -> None:
        assert isinstance(event, StepProgress)
        self.events.append(event)


def test_progress_is_weighted_by_work_and_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, told = [100.0], Told()
    monkeypatch.setattr("audit.atlas.progress.time.monotonic", lambda: seconds[0])
    pace = Pace(observer=told, work={(0, 1): 50_000_000, (0, 2): 25_000_000, (1, 2): 25_000_000}, done=[(0, 1)])
    pace.begin((0, 2))
    seconds[0] = 110.0
    pace.end((0, 2))
    pace.begin((1, 2))
    pace.end((1, 2))
    assert [(event.done, event.total) for event in told.events] == [(500, 1000), (750, 1000), (1000, 1000)]
    assert [event.label for event in told.events] == [
        "layer 0 to 2, 1 of 3 pairs of layers",
        "layer 1 to 2, 2 of 3 pairs of layers, 2.5 million weights/s, 10 s left",
        "3 pairs of layers",
    ]
