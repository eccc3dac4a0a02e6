"""How many rows are decoded at a time: what they need, and what is free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from audit.subject import LanguageModel

MAX_ROWS = 256
"""Rows decoded at a time at most on a CPU: beyond it a step is no quicker a row."""
MAX_ROWS_ACCELERATED = 1024
"""The same on an accelerator, where a step of few rows takes as long as one of many."""
PROMPT_TOKENS = 4096
"""Tokens of prompts read in one pass at most, unless one prompt has more."""
_SHARE = 0.6
"""Of the free memory that a sweep may take: estimates are rough, and other programs live too."""
_CONTAINERS = (Path("/sys/fs/cgroup"),)
"""Where a container's limit and use are written."""
_LACKING = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Words of errors that say that memory could not be had, where their class does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What one prompt's configurations ask for."""

    n_prompt: int
    """Tokens of the prompt."""
    n_new: int
    """Most tokens of an answer."""
    n_rows: int
    """Rows in all, twins included."""
    n_samples: int = 1
    """Rows that share a configuration's prompt."""
    owners: tuple[int, ...] = ()
    """Configurations that have keys and values of the prompt of their own, one number a layer."""
    frozen: bool = False
    """Whether some rows have twins, and the unsteered model's queries are kept."""
    unshared: bool = False
    """Whether every row reads the prompt for itself."""

    @property
    def least(self) -> int:
        """Fewest rows that can be written at a time: a row with its twin."""
        return 2 if self.frozen else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Rows and prompts that are held at a time."""

    rows: int
    owned: tuple[int, ...]
    """Configurations with prompts of their own, one number a layer."""
    memory_bytes: int
    free_bytes: int
    """Before anything of it is taken."""


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return min([int(psutil.virtual_memory().available), *_left_to_container()])


def _left_to_container() -> Sequence[int]:
    found = []
    for folder in _CONTAINERS:
        limit, used, counts = (folder / name for name in ("memory.max", "memory.current", "memory.stat"))
        if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
            # Files that were read are counted as used, and given up when memory is asked for.
            lines = counts.read_text().splitlines() if counts.is_file() else []
            cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
            found.append(max(0, int(text) - int(used.read_text()) + cached))
    return found


def release_cached(device: torch.device) -> None:
    """Give back what PyTorch keeps for itself on an accelerator."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def plan_memory(model: LanguageModel, need: Need, *, most: int | None = None, free: int | None = None) -> MemoryPlan:
    """Halve the rows, and with them the configurations held, until they fit.

    Args:
        model: the model.
        need: what is asked for.
        most: rows that the caller allows; None for what is usual on the device.
        free: bytes that are free; None to ask the device.
    """
    free = free_bytes(model.device) if free is None else free
    usual = MAX_ROWS if model.device.type == "cpu" else MAX_ROWS_ACCELERATED
    rows = max(need.least, min(need.n_rows, usual if most is None else most))
    while True:
        # Of some configurations a few rows are left while the next ones are begun.
        own = 2 * math.ceil(rows / need.n_samples) + 1
        owned = tuple(min(own, rows, n) for n in need.owners)
        taken = _unshared(model, need, rows) if need.unshared else _shared(model, need, rows, owned)
        if taken <= _SHARE * free or rows == need.least:
            return MemoryPlan(rows=rows, owned=owned, memory_bytes=taken, free_bytes=free)
        rows = max(need.least, rows // 2)


def _shared(model: LanguageModel, need: Need, rows: int, owned: Sequence[int]) -> int:
    """What so many rows, and so many configurations' own prompts, take."""
    a_layer, size = _a_layer(model), _size(model)
    plain = need.n_prompt * model.n_layers * (a_layer + (model.d_heads * size if need.frozen else 0))
    reading = max(need.n_prompt, min(PROMPT_TOKENS, need.n_prompt * max(owned, default=1))) * _a_token(model)
    return plain + sum(owned) * need.n_prompt * a_layer + rows * (_a_row(model, need) + _a_token(model)) + reading


def _unshared(model: LanguageModel, need: Need, rows: int) -> int:
    """What so many rows take that all read the prompt; keys and values are there twice while a token is added to them."""
    prompts = need.n_prompt * (2 * model.n_layers * _a_layer(model) + _a_token(model))
    return rows * (prompts + 2 * _a_row(model, need))


def _a_row(model: LanguageModel, need: Need) -> int:
    """Of one row, beside its prompt: scores are held twice in float32, logits as they are and three times more while a token is chosen."""
    heads = model.hf.config.get_text_config().num_attention_heads
    scores = 8 * heads * (need.n_prompt + need.n_new)
    return int(need.n_new * model.n_layers * _a_layer(model) + scores + model.vocabulary * (_size(model) + 12))


def _a_layer(model: LanguageModel) -> int:
    """Keys and values of one token in one layer."""
    config = model.hf.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * heads * model.d_heads // config.num_attention_heads * _size(model))


def _a_token(model: LanguageModel) -> int:
    """What a layer holds of one token while it computes."""
    inner = getattr(model.hf.config.get_text_config(), "intermediate_size", None) or 4 * model.d_model
    return int(_size(model) * (8 * model.d_model + 4 * model.d_heads + 3 * inner))


def _size(model: LanguageModel) -> int:
    return torch.finfo(model.dtype).bits // 8


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; PyTorch says so on a CPU in words alone."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKING)
