"""A table keeps the strongest of all that it was offered, in whatever order, and its file gives it back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from audit.atlas.table import EMPTY, ENTRY, Table

offers = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 9), st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0000001, 2.0])),
    unique_by=lambda offer: offer[:3],
    max_size=40,
)


def rows_of(some: list[tuple[int, int, int, float]]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.full(len(some), EMPTY)
    for place, (_, layer, index, twera) in enumerate(some):
        rows[place] = (2 * twera, 3 * twera, twera, index, index + 1, layer)
    return np.array([each[0] for each in some], dtype=np.intp), rows


@given(offers, st.integers(1, 5), st.lists(st.integers(0, 40), max_size=4))
def test_what_is_kept_is_the_beginning_of_the_order(some: list[tuple[int, int, int, float]], top: int, cuts: list[int]) -> None:
    table = Table.empty(np.arange(4), top)
    bounds = sorted({0, len(some), *(min(cut, len(some)) for cut in cuts)})
    for low, high in zip(bounds, bounds[1:], strict=False):
        table.offer(*rows_of(some[low:high]))
    for feature in range(4):
        for half, sign in enumerate((1, -1)):
            mine = [offer for offer in some if offer[0] == feature and sign * offer[3] > 0]
            ordered = sorted(mine, key=lambda offer: (-abs(np.float32(offer[3])), offer[1], offer[2]))[:top]
            kept = table.entries[feature, half]
            assert [(int(row["layer"]), int(row["index"])) for row in kept if row["layer"] >= 0] == [offer[1:3] for offer in ordered]
            assert np.all(kept[len(ordered) :] == EMPTY)
            assert table.floor[feature, half] == (abs(np.float32(ordered[-1][3])) if len(ordered) == top else 0)


@given(offers, st.integers(1, 5), st.frozensets(st.integers(0, 30)))
def test_a_file_gives_the_table_back(some: list[tuple[int, int, int, float]], top: int, merged: frozenset[int]) -> None:
    table = Table.empty(np.array([7, 0, 3, 9]), top)
    table.offer(*rows_of(some))
    table.n_unsupported[:] = [1, 2, 3, 2**40]
    table.merged = merged
    with tempfile.TemporaryDirectory() as room:
        table.save(Path(room), "target", 5, "0" * 64)
        assert [path.name for path in Path(room).iterdir()] == ["target-5.safetensors"]
        found = Table.load(Path(room), "target", 5, (4, top))
    assert found.entries.dtype == ENTRY
    assert found.merged == merged
    for name in ("entries", "n_firing", "n_unsupported", "floor"):
        assert np.array_equal(getattr(found, name), getattr(table, name))
