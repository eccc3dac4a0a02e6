"""The cells that ``steering.py`` measures: shapes of models, sizes of sweeps, and how often each arm is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

NEW_TOKENS = 32
STRENGTH = 0.5
"""Norm of what is added, in mean norms of the residual stream there."""
BUDGET = 4_096
"""Rows × tokens of prompts that a loop is timed on in one run where it is timed on some of the configurations."""
BATCH = 16_384
"""Rows × tokens of prompts up to which the grid has the arm ``batched``."""
FLAT = {"prompt_tokens": 1024, "rows": 64, "configurations": (1, 4, 16, 64), "repeats": 5}
POSITIONS = ("all", "generated")
PARTS = ("small", "flat", "main", "peers", "bf16", "1b", "grid", "shares", "gpu")
Measured = dict[str, Any]


def llama(n_layers: int, d_model: int, heads: tuple[int, int], ffn: int, vocabulary: int, **more: Any) -> Measured:
    """A Llama configuration; heads are those of queries and of keys.

    Rotary frequencies are the default, since versions of transformers write others to files in different ways.
    """
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(names, (n_layers, d_model, ffn, vocabulary, *heads), strict=True))
    return {"model_type": "llama", **sizes, "max_position_embeddings": 8192, **more}


SHAPES: dict[str, Measured] = {
    "tiny": llama(4, 64, (4, 2), 128, 500),
    "6l": llama(6, 512, (8, 2), 2048, 32_000),
    "1b-4l": llama(4, 2048, (32, 8), 8192, 128_256, tie_word_embeddings=True),
    "llama-3.2-1b": llama(16, 2048, (32, 8), 8192, 128_256, tie_word_embeddings=True),
    "gemma-2-2b": {
        **llama(26, 2304, (8, 4), 9216, 256_000, tie_word_embeddings=True, head_dim=256, sliding_window=4096),
        "model_type": "gemma2",
        "query_pre_attn_scalar": 256,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of the grid."""

    shape: str
    """A name of ``SHAPES``."""
    dtype: str = "float32"
    prompt_tokens: int = 1024
    samples: int = 4
    configurations: int = 16
    share: int = 50
    """Depth of the layer written, per cent."""
    positions: str = "all"
    runs: dict[str, int]
    """Arm → runs, interleaved."""
    timed: int | None = None
    """Configurations that a loop is timed on; None for all."""
    beside: str = ""
    """What is measured there beside the usual arms; part of the name."""

    @property
    def layer(self) -> int:
        """The layer after whose block is written."""
        n_layers: int = SHAPES[self.shape]["num_hidden_layers"]
        return n_layers * self.share // 100 - 1

    @property
    def key(self) -> str:
        """Its name in the result."""
        sizes = f"P{self.prompt_tokens} N{self.samples} C{self.configurations}"
        return f"{self.shape} {self.dtype} {sizes} {self.share}% {self.positions} {self.beside}".rstrip()

    def n_timed(self, arm: str) -> int:
        """Configurations that an arm is timed on."""
        return min(self.timed or self.configurations, self.configurations) if arm not in ("ours", "batched") else self.configurations

    @property
    def target(self) -> float | None:
        """Times the loop's speed that is asked for; None where nothing is."""
        if self.prompt_tokens >= 1024 and self.samples >= 4 and self.configurations >= 16:
            return 10.0 if self.positions == "all" else 20.0
        return 0.9 if self.prompt_tokens == 128 and self.configurations == 1 else None


def cells_of(part: str) -> list[Cell]:
    """The cells of a part; of ``flat``, which is measured in another way, none."""
    both = {"loop": 5, "ours": 5}
    if part == "small":
        sizes = [(n, positions) for n in (1, 4) for positions in POSITIONS]
        runs = {"loop": 15, "ours": 15}
        return [Cell(shape="6l", prompt_tokens=128, samples=n, configurations=1, positions=where, runs=runs) for n, where in sizes]
    if part == "main":
        half = [Cell(shape="6l", positions=where, runs={**both, "batched": 3}) for where in POSITIONS]
        return half + [Cell(shape="6l", share=share, positions=where, runs=both, timed=4) for share in (25, 75) for where in POSITIONS]
    if part == "peers":
        runs = {**both, "steering_vectors": 5, "nnsight": 5}
        sizes = {"timed": 4, "runs": runs, "beside": "peers"}
        return [Cell(shape="6l", prompt_tokens=p, positions=where, **sizes) for p in (128, 1024) for where in POSITIONS]
    if part == "bf16":
        return [Cell(shape="6l", dtype="bfloat16", positions=where, runs={**both, "batched": 3}, timed=4) for where in POSITIONS]
    if part == "1b":
        runs = {"loop": 3, "ours": 3}
        return [Cell(shape="1b-4l", dtype=d, positions=where, runs=runs, timed=1) for d in ("float32", "bfloat16") for where in POSITIONS]
    if part == "gpu":
        sizes = {"dtype": "bfloat16", "prompt_tokens": 4096, "samples": 16, "configurations": 256, "timed": 2, "runs": both}
        return [Cell(shape=shape, positions=where, **sizes) for shape in ("llama-3.2-1b", "gemma-2-2b") for where in POSITIONS]
    return list(grid((50,) if part == "grid" else (25, 75))) if part in ("grid", "shares") else []


def grid(shares: Sequence[int]) -> Iterator[Cell]:
    """Every prompt length, number of samples and of configurations: three runs, the loop on as many configurations as the budget allows."""
    main = {cell.key for cell in cells_of("main") + cells_of("small")}
    for p, n, c, share, where in (
        (p, n, c, share, where)
        for p in (128, 1024, 3072)
        for n in (1, 4, 16)
        for c in (1, 16, 64)
        for share in shares
        for where in POSITIONS
    ):
        arms = ("loop", "batched", "ours") if c > 1 and p * n * c <= BATCH else ("loop", "ours")
        sizes = {"prompt_tokens": p, "samples": n, "configurations": c, "share": share, "timed": max(1, BUDGET // (p * n))}
        cell = Cell(shape="6l", positions=where, runs=dict.fromkeys(arms, 3), **sizes)
        if cell.key not in main:
            yield cell


def groups(parts: Sequence[str], only: str) -> dict[tuple[str, str], list[tuple[str, Cell]]]:
    """(shape, dtype) → part and cell."""
    found: dict[tuple[str, str], list[tuple[str, Cell]]] = {}
    for part in parts:
        for cell in cells_of(part):
            if only in cell.key:
                found.setdefault((cell.shape, cell.dtype), []).append((part, cell))
    return found


def quick() -> dict[tuple[str, str], list[tuple[str, Cell]]]:
    """A tiny shape, to try the script."""
    runs = {"loop": 3, "batched": 2, "ours": 3}
    cells = [Cell(shape="tiny", prompt_tokens=24, samples=2, configurations=5, positions=where, runs=runs, timed=3) for where in POSITIONS]
    peers = {**runs, "steering_vectors": 2, "nnsight": 2}
    return {
        ("tiny", "float32"): [("quick", cells[0]), ("quick", cells[1]), *(("quick", replace(cell, share=75, runs=peers)) for cell in cells)]
    }
