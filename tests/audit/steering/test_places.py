from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from audit.records import Positions
from audit.steering.places import Reach

SPANS = st.lists(st.tuples(st.integers(-6, 14), st.integers(0, 5)), min_size=1, max_size=3)


@given(st.sampled_from(Positions), SPANS, st.integers(2, 10), st.integers(1, 4))
def test_every_position_is_written_where_its_kind_says(
    positions: Positions, drawn: list[tuple[int, int]], n_prompt: int, first: int
) -> None:
    first = min(first, n_prompt)
    spans = tuple((low, min(low + more, -1) if low < 0 else low + more) for low, more in drawn)
    reach = Reach(positions, spans if positions is Positions.SPANS else ())
    listed = {at for low, high in spans for each in range(low, high + 1) for at in [each + n_prompt if each < 0 else each]} - {0}
    expected = {
        Positions.PROMPT: set(range(first, n_prompt)),
        Positions.GENERATED: set(range(n_prompt, 40)),
        Positions.ALL: set(range(first, 40)),
        Positions.SPANS: listed,
    }[positions]
    written = [at for at, flag in enumerate(reach.in_prompt(n_prompt, first)) if flag]
    assert written == sorted(at for at in expected if 0 < at < n_prompt)
    assert [at for at in range(n_prompt, 40) if reach.at(at, n_prompt)] == sorted(at for at in expected if at >= n_prompt)
    assert reach.start(n_prompt, first) == (written[0] if written else None)
