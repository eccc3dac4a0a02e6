"""What the atlas of a whole dictionary costs, part by part, and what it would cost on a wider one.

    python benchmarks/atlas_case.py [--layers N] [--features N] [--d-model N] [--tokens N] [--memory BYTES] [--device cuda]

The dictionary is a random cross-layer transcoder in circuit-tracer's format, bfloat16, with activations by a Zipf law, as in
``connections.py``. Decoders are rows of a pool of random numbers, from random places on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from connections import TOP, machine, resident
from made_dictionary import FULL, L0, SUPPORT, encoders, opened, write, zipf
from open_dictionary import make_clt

from audit.atlas import Atlas, building, cells, manifest, pair, sifting
from audit.atlas.pair import LayerPair
from audit.atlas.sums import Sums
from audit.atlas.table import Table
from audit.events import Event, SilentObserver, StepProgress
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "gemm": ((pair, "multiplied"),),
    "sparse": tuple((cells, name) for name in ("by_feature", "sources", "targets", "meet", "n_meeting")),
    "sift": ((sifting, "may_lead"), (pair, "exact"), (Table, "offer")),
    "decoders": ((Sums, "keep"), (LayerPair, "directions")),
    "files": ((Table, "save"), (manifest, "write")),
}
"""Part → what is timed; nothing of a part calls another part."""
N_LOOKUPS = 20
Measured = dict[str, Any]


class _Watch(SilentObserver):
    """Notes when each pair of layers begins."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def notify(self, event: Event) -> None:
        """Take the time of a pair's beginning, and of the end of the last."""
        assert isinstance(event, StepProgress)
        self.times.append(time.perf_counter())
        sys.stderr.write(f"{event.done / 10:.1f} % {event.label}\n")


def random_decoders(folder: Path, shape: dict[str, int]) -> None:
    """Write random decoders of all features over the holes of the files."""
    n_features, d_model = shape["n_features"], shape["d_model"]
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(1 << 24, generator=generator).bfloat16()
    for layer in range(shape["n_layers"]):
        width = (shape["n_layers"] - layer) * d_model
        for feature in range(n_features):
            start = int(torch.randint(len(pool) - width, (), generator=generator))
            row = pool[start : start + width].contiguous()
            write(folder / f"W_dec_{layer}.safetensors", f"W_dec_{layer}", feature * width * 2, row)


@contextmanager
def timers() -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Seconds of wall and of processor in each part, for as long as the block runs."""
    wall, cpu = dict.fromkeys(PARTS, 0.0), dict.fromkeys(PARTS, 0.0)
    before = [(home, name, home.__dict__[name]) for parts in PARTS.values() for home, name in parts]

    def timed(part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def call(*arguments: Any, **options: Any) -> Any:
            begun, used = time.perf_counter(), time.process_time()
            try:
                return work(*arguments, **options)
            finally:
                wall[part] += time.perf_counter() - begun
                cpu[part] += time.process_time() - used

        return call

    for part, places in PARTS.items():
        for home, name in places:
            setattr(home, name, timed(part, home.__dict__[name]))
    try:
        yield wall, cpu
    finally:
        for home, name, work in before:
            setattr(home, name, work)


def made_subject(folder: Path, shape: dict[str, int], n_tokens: int) -> tuple[Subject, TokenActivations]:
    """The dictionary, without a model, and activations in memory."""
    make_clt(folder, **shape)
    encoders(folder, shape)
    random_decoders(folder, shape)
    dictionary = opened(folder, shape, shape["n_layers"] * shape["n_features"])
    nothing = np.zeros(n_tokens, dtype=np.int32)
    sigma = np.ones((n_tokens, shape["n_layers"] + 1), dtype=np.float32)
    layers = tuple(zipf(shape, n_tokens))
    activations = TokenActivations(token_ids=nothing, document=nothing, position=nothing, layers=layers, sigma=sigma)
    info = SimpleNamespace(model_sha256="0" * 64, dictionary_sha256="1" * 64, corpus_sha256="2" * 64)
    return cast(Subject, SimpleNamespace(dictionary=dictionary, model=None, info=info)), activations


def atlas_case(
    n_layers: int,
    n_features_per_layer: int,
    d_model: int,
    n_tokens: int,
    folder: Path,
    *,
    memory_bytes: int = building.MEMORY,
    device: str = "cpu",
) -> Measured:
    """Build the atlas of a made dictionary once.

    Args:
        n_layers: of the dictionary.
        n_features_per_layer: of each.
        d_model: of the model.
        n_tokens: of the corpus.
        folder: empty; takes the dictionary and the atlas.
        memory_bytes: of the build.
        device: that multiplies.
    """
    shape = {"n_layers": n_layers, "n_features": n_features_per_layer, "d_model": d_model}
    subject, activations = made_subject(folder / "clt", shape, n_tokens)
    watch, before, begun, used = _Watch(), resident(), time.perf_counter(), time.process_time()
    options: dict[str, Any] = {"top": TOP, "support": SUPPORT, "memory_bytes": memory_bytes, "device": torch.device(device)}
    with timers() as (wall, cpu):
        totals = building.build(subject, activations, folder / "atlas", observer=watch, **options)
    seconds, processor, after = time.perf_counter() - begun, time.process_time() - used, resident()
    pairs = np.diff(watch.times)
    parts = {f"{name}_s": value for name, value in wall.items()}
    return {
        "shape": shape,
        "n_features": totals.n_features,
        "n_active": list(totals.active),
        "n_tokens": n_tokens,
        "l0": L0,
        "memory_bytes": memory_bytes,
        "device": device,
        "wall_s": seconds,
        **parts,
        "other_s": seconds - sum(wall.values()),
        "cpu_s": processor,
        "parts_cpu_s": cpu,
        "pairs": len(pairs),
        "pair_s": {"median": statistics.median(pairs), "largest": max(pairs)},
        "held_before_mb": before["anonymous_mb"],
        "peak_mb": after["peak_mb"],
        "atlas_bytes": totals.n_bytes,
        "lookup_ms": lookups(folder / "atlas", shape),
        "extrapolated": extrapolated(cpu, shape, totals.active, n_tokens),
        "machine": {**machine(device), "load": os.getloadavg()[0]},
    }


def lookups(folder: Path, shape: dict[str, int]) -> float:
    """Milliseconds to open an atlas and to ask it for one feature; the median of several features."""
    times = []
    for place in range(N_LOOKUPS):
        begun = time.perf_counter()
        Atlas.open(folder).neighbours(FeatureId("clt", place % shape["n_layers"], place * 7 % shape["n_features"]))
        times.append(time.perf_counter() - begun)
    return 1000 * statistics.median(times)


def extrapolated(parts: dict[str, float], shape: dict[str, int], active: Sequence[int], n_tokens: int) -> Measured:
    """CPU-seconds on 26 × 16,384 features with d_model 2,304, on as many tokens with as many active features a token.

    Products and sifting grow with the pairs of features that fire often enough, products also with d_model. Sparse products grow with
    tokens · L0², hence with pairs of layers alone (and with the pairs of features that meet, which is left out). Sums of decoders grow
    with active features times decoder slices, files with features times pairs of layers.
    """
    [layer] = zipf({**FULL, "n_layers": 1}, n_tokens)
    n_active = int(np.count_nonzero(np.bincount(layer.indices, minlength=FULL["n_features"]) >= SUPPORT))
    there = [n_active] * FULL["n_layers"]
    wide = FULL["d_model"] / shape["d_model"]
    cells_times = _pairs_of(there) / _pairs_of(list(active))
    layers_times = FULL["n_layers"] * (FULL["n_layers"] - 1) / (shape["n_layers"] * (shape["n_layers"] - 1))
    factors = {
        "gemm": cells_times * wide,
        "sparse": layers_times,
        "sift": cells_times,
        "decoders": layers_times * wide * n_active / max(1.0, float(np.mean(active))),
        "files": layers_times * FULL["n_features"] / shape["n_features"],
    }
    seconds = {name: parts[name] * factor for name, factor in factors.items()}
    return {
        "formula": "gemm ∝ active sources · active targets · d_model; sift ∝ active sources · active targets; "
        "sparse ∝ pairs of layers · tokens · L0²; decoders ∝ pairs of layers · active features · d_model; "
        "files ∝ pairs of layers · features",
        "n_active_per_layer": n_active,
        "factors": factors,
        "parts_cpu_s": seconds,
        "cpu_s": sum(seconds.values()),
    }


def _pairs_of(active: list[int]) -> float:
    """Pairs of active features of an earlier and a later layer."""
    return float(sum(active[source] * active[target] for target in range(len(active)) for source in range(target)))


def main() -> None:
    """Make, build, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=26)
    parser.add_argument("--features", type=int, default=2_520, help="of each layer")
    parser.add_argument("--d-model", type=int, default=2_304)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--memory", type=int, default=building.MEMORY, help="bytes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="for temporary files: 5 GB with the defaults")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as room:
        needed = given.layers**2 * given.features * given.d_model * 1.2 + 1e8
        if shutil.disk_usage(room).free < needed:
            sys.exit(f"The benchmark needs {needed / 1e9:.1f} GB of free disk.")
        shape = (given.layers, given.features, given.d_model, given.tokens)
        found = atlas_case(*shape, Path(room), memory_bytes=given.memory, device=given.device)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
