from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audit.steering import attention
from audit.steering.attention import causal, merged, partial
from audit.steering.layerwise import Scoring


def by_hand(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, seen: Tensor) -> Tensor:
    """Softmax attention from its definition, in float64; heads share keys in order."""
    each = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(each, dim=1) for x in (k, v))
    scores = q.double() @ k.transpose(-1, -2) * scoring.scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    return torch.softmax(scores.masked_fill(~seen, -torch.inf), -1) @ v


CAPS = st.sampled_from([None, 2.0, 30.0])


@given(st.integers(1, 7), st.integers(1, 9), st.integers(1, 4), CAPS, st.integers(0, 10**6))
def test_two_parts_merge_to_attention_over_all_keys(one: int, other: int, queries: int, cap: float | None, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (3 * torch.randn(2, 3, n, 4, generator=draw) for n in (queries, one + other, one + other))
    scoring = Scoring(0.7, cap, None)
    parts = [partial(q, k[:, :, some], v[:, :, some], scoring) for some in (slice(0, one), slice(one, None))]
    expected = by_hand(q, k, v, scoring, torch.ones(queries, one + other, dtype=torch.bool))
    torch.testing.assert_close(merged(parts[0], parts[1]).double(), expected, atol=1e-5, rtol=1e-5)


def test_the_sum_of_a_part_is_the_log_of_its_weights() -> None:
    q, k, v = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4)
    _, total = partial(q, k, v, Scoring(0.5, None, None))
    torch.testing.assert_close(total, torch.logsumexp(0.5 * q @ k.transpose(-1, -2), -1))


def test_keys_that_no_query_sees_change_nothing() -> None:
    q, k, v = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 6, 4), torch.randn(1, 1, 6, 4)
    scoring, none = Scoring(1.0, None, None), torch.zeros(2, 6, dtype=torch.bool)
    seen = partial(q, k[:, :, :3], v[:, :, :3], scoring)
    unseen = partial(q, k, v, scoring, none)
    assert torch.equal(merged(unseen, seen), seen[0])
    assert torch.equal(merged(seen, unseen), seen[0])


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("queries", [1, 4, 9])
def test_the_last_tokens_see_what_is_before_them(
    monkeypatch: pytest.MonkeyPatch, window: int | None, cap: float | None, queries: int
) -> None:
    """Scores written out in steps of two queries where they are capped."""
    monkeypatch.setattr(attention, "_SCORES", 2 * 2 * 4 * 9)
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    at = torch.arange(9 - queries, 9)[:, None]
    seen = (torch.arange(9) <= at) & (torch.arange(9) > at - (window or 9))
    scoring = Scoring(0.4, cap, window)
    torch.testing.assert_close(causal(q, k, v, scoring).double(), by_hand(q, k, v, scoring, seen), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_keys", [127, 128, 700])
def test_the_fused_kernel_gives_what_written_out_scores_give(monkeypatch: pytest.MonkeyPatch, n_keys: int) -> None:
    q, k, v = torch.randn(3, 2, 5, 16), torch.randn(3, 2, n_keys, 16), torch.randn(3, 2, n_keys, 16)
    assert attention._FUSED is not None
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return kernel(*args, **options)

    kernel = attention._FUSED
    monkeypatch.setattr(attention, "_FUSED", counted)
    fused = partial(q, k, v, Scoring(0.3, None, None))
    assert len(calls) == (n_keys >= 128)
    monkeypatch.setattr(attention, "_FUSED", None)
    for one, other in zip(fused, partial(q, k, v, Scoring(0.3, None, None)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
