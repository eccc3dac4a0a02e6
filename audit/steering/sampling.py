"""The random numbers of a rollout, and the token that each of them chooses.

Step t of sample n on variant v draws one uniform number u from a Philox generator keyed by (seed, v, n): a draw does not depend on which
other rollouts are computed beside it, on how many, or on whether the sweep was resumed. Configurations share these numbers on purpose: two
treatments that change nothing give the same text, and paired differences between configurations are sharper.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK = 512
"""Tokens whose weights are summed together before they are cumulated: the token is found in two steps, coarse and fine."""


def uniforms(seed: int, variant: int, sample: int, n: int) -> NDArray[np.float64]:
    """The n random numbers of one rollout, in [0, 1): step t has the same one whatever n is, and in every configuration."""
    key = hashlib.sha256(f"rollout/{seed}/{variant}/{sample}".encode()).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(n)


def choose(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Next tokens, (rows,), from logits (rows, vocabulary): the first token at which the cumulated probability exceeds the uniform number.

    Args:
        logits: any floating type.
        uniform: (rows,) float64, in [0, 1).
        temperature: what logits are divided by; 0 takes the likeliest token.
    """
    if temperature == 0:
        if logits.device.type == "cpu" and logits.dtype is torch.float32:
            return torch.from_numpy(logits.numpy().argmax(-1))  # ten times as fast as PyTorch's
        return logits.argmax(-1)
    if logits.device.type == "mps":
        logits = logits.cpu()  # it has no float64
    scaled = logits.float() / temperature
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp_()
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % _BLOCK)).view(len(weights), -1, _BLOCK)
    coarse = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    level = uniform.to(logits.device) * coarse[:, -1]
    block = torch.searchsorted(coarse, level[:, None], right=True).clamp_max(coarse.shape[1] - 1)
    before = torch.where(block > 0, coarse.gather(1, (block - 1).clamp_min(0)), 0.0)
    fine = blocks.gather(1, block[:, :, None].expand(-1, -1, _BLOCK))[:, 0].double().cumsum(-1)
    # The rounding of the block's own sum may put the level at its very end: then its last token of any weight is meant.
    level = torch.minimum(level[:, None] - before, torch.nextafter(fine[:, -1:], torch.zeros_like(fine[:, -1:])))
    place = torch.searchsorted(fine, level, right=True).clamp_max(_BLOCK - 1)
    return (block * _BLOCK + place)[:, 0].clamp_max(logits.shape[-1] - 1)
