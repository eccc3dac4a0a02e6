"""Attention in parts: over a prompt whose keys and values many rows share, and over what each row wrote itself, merged exactly.

For softmax attention over the union of two sets of keys, with o and s the result and the log-sum-exp of the scores over each set alone,

    o = o₁·σ(s₁ − s₂) + o₂·(1 − σ(s₁ − s₂)),    σ the logistic function,

so a prompt's keys and values are read once for all rows, and never copied to each of them (Juravsky et al. 2024, arXiv 2402.05099).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from audit.steering.layerwise import Scoring

_UNSEEN = -1e30
"""Score of a key that is not seen: its weight is 0, and where no key is seen nothing becomes undefined."""
_SCORES = 1 << 24
"""Scores held at once where they are written out."""
_FUSED: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""PyTorch's own kernel, which gives the log-sum-exp too: 1.4 to 3 times as fast in float32, and in bfloat16 does not round the scores. It
is not public, so that a version without it computes the same from scores written out."""
_WORTH_FUSING = 128
"""Keys from which on it is faster."""


def partial(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention over one set of keys, and the log-sum-exp of the scores, from which parts are merged.

    Args:
        q: (batch, heads of keys, queries, size).
        k: (batch, heads of keys, keys, size).
        v: as k.
        scoring: how keys are weighed; its window is not looked at.
        seen: which keys are, of a shape that broadcasts to (batch, heads of keys, queries, keys); None for all. Values that are not seen
            must be finite.

    Returns:
        (batch, heads of keys, queries, size) in the type of v, and (batch, heads of keys, queries) float32: about −1e30 where no key is
        seen.
    """
    plain = seen is None and scoring.cap is None and k.shape[2] >= _WORTH_FUSING
    if plain and q.device.type == "cpu" and _FUSED is not None:
        outcome, total = _FUSED(q, k, v, 0.0, False, scale=scoring.scale)
        return outcome, total
    scores = torch.matmul(q, k.transpose(-1, -2)).float() * scoring.scale
    if scoring.cap is not None:
        scores = torch.tanh(scores / scoring.cap) * scoring.cap
    if seen is not None:
        scores = scores.masked_fill(~seen, _UNSEEN)
    highest = scores.amax(-1)
    weights = scores.softmax(-1)
    # The largest weight is exp(highest − lse), and never less than 1 / number of keys.
    return torch.matmul(weights.to(v.dtype), v), highest - weights.amax(-1).log()


def merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """Attention over two disjoint sets of keys, (…, size), from what ``partial`` gives of each."""
    share = torch.sigmoid(one[1] - other[1]).unsqueeze(-1)
    if one[0].dtype is torch.float32:
        return torch.lerp(other[0], one[0], share)
    return torch.lerp(other[0].float(), one[0].float(), share).to(one[0].dtype)


def causal(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
    """Attention of the last tokens of a sequence over all of it, each seeing itself and what is before it in its window.

    Args:
        q: (batch, heads, queries, size) of the last tokens.
        k: (batch, heads of keys, tokens, size).
        v: as k.
        scoring: how keys are weighed.

    Returns:
        (batch, heads, queries, size).
    """
    n_queries, n_keys = q.shape[2], k.shape[2]
    if n_queries == 1 and scoring.window is not None:
        k, v = k[:, :, -scoring.window :], v[:, :, -scoring.window :]
        n_keys = k.shape[2]
    plain = n_queries == n_keys and (scoring.window is None or scoring.window >= n_keys)
    if scoring.cap is None and (plain or n_queries == 1):  # a single query sees all that is left
        causal_only, shared = plain and n_queries > 1, q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, is_causal=causal_only, scale=scoring.scale, enable_gqa=shared)
    seen = _seen(n_queries, n_keys, scoring.window, q.device)
    if scoring.cap is None:
        return scaled_dot_product_attention(q, k, v, seen, scale=scoring.scale, enable_gqa=q.shape[1] != k.shape[1])
    return _capped(q, k, v, scoring, seen)


def _seen(n_queries: int, n_keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) of bool."""
    back = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None] - torch.arange(n_keys, device=device)
    return (back >= 0) & (back < (window or n_keys))


def _capped(q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, seen: Tensor) -> Tensor:
    """Attention with scores written out, some queries at a time, since no fused kernel caps them."""
    batch, heads, n_queries, size = q.shape
    by_key = q.view(batch, k.shape[1], -1, n_queries, size)
    step = max(1, _SCORES // (batch * heads * k.shape[2]))
    parts = []
    for start in range(0, n_queries, step):
        some = by_key[:, :, :, start : start + step]
        mask = seen[start : start + step].repeat(some.shape[2], 1)
        parts.append(partial(some.flatten(2, 3), k, v, scoring, mask)[0].view(some.shape))
    return torch.cat(parts, dim=3).view(batch, heads, n_queries, size)
