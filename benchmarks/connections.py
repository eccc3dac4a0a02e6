"""What the downstream connections of many candidates cost on a dictionary of 426,000 features, beside what the machine can do at best.

    python benchmarks/connections.py [--quick] [--device cuda] [--tokens N] [--part candidates|atlas]

The dictionary is a cross-layer transcoder in circuit-tracer's format: 26 layers × 16,384 features, d_model 2,304, bfloat16. Its encoders
are random numbers on disk (2 GB); its decoders are sparse files that hold random numbers for the candidates alone. Activations are random
and sparse: the feature of rank r of a layer fires on a share of tokens proportional to 1/r, 64 features a token and layer. Candidates
are drawn from layers 0 to 12 among the features that fire on 20 tokens or more.

Measured are V, TWERA, ERA, support and the 32 strongest targets of 1, 10, 100 and 1,000 candidates (``strongest_targets``: what
``connect`` calls before it describes the targets), on 26,000, 106,000 and 426,000 features and on longer corpora, against

- a naive loop over candidates that turns every later layer into float32 anew, measured on a few candidates and extrapolated;
- the bound max(bytes / read bandwidth, operations / rate of a matrix product), both measured in the same process.

Every measurement is made by a process of its own; medians are written to ``benchmarks/results``. Then the atlas of a dictionary of 65,000
features is built once, with its extrapolation to 426,000 (``atlas_case.py``). One part leaves the result of the other as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from made_dictionary import FULL, QUICK, SUPPORT, cut, decoders, drawn, encoders, opened, read_activations, stored, zipf
from open_dictionary import make_clt

from audit.connections import coactivation, virtual_weights
from audit.connections.strongest import strongest_targets
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary

RESULTS = Path(__file__).parent / "results"
TOP = 32
REPEATS = 5
"""Runs, after one that warms up."""
MOST = 4
"""The longest corpus, in lengths of the usual one."""
NAIVE = 3
"""Candidates that the naive loop is measured on."""
Measured = dict[str, Any]


def resident() -> dict[str, float]:
    """Peak resident memory and what of the present one is not a mapped file, in MB."""
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {name: int(rows[key].split()[0]) / 1000 for name, key in (("peak_mb", "VmHWM"), ("anonymous_mb", "RssAnon"))}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of wall and of processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def repeated(work: Callable[[], object], n: int) -> list[dict[str, float]]:
    """Runs after one that warms up."""
    return [timed(work) for _ in range(n + 1)][1:]


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and the number of runs."""
    found: dict[str, float] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**found, "runs": len(runs)}


def naive(subject: Subject, activations: TokenActivations, sources: list[FeatureId]) -> None:
    """One candidate after the other: every later layer becomes float32 whole, and is multiplied by the decoders of one candidate."""
    for source in sources:
        decoder = subject.dictionary.decoder(source)
        own = coactivation.positive(activations.layers[source.layer][:, [source.index]])
        for layer in range(source.layer + 1, subject.dictionary.n_layers):
            virtual = subject.dictionary.at(layer).W_enc.tensor.float() @ decoder[: layer - source.layer].sum(0)
            target = activations.layers[layer]
            weighted = (own.T @ target).toarray()[0]
            total = np.asarray(target.sum(axis=0)).ravel()
            twera = np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0) * virtual.numpy()
            np.argpartition(-np.abs(twera), TOP)[:TOP]


def bound(dictionary: Dictionary, sources: list[FeatureId], device: torch.device) -> dict[str, float]:
    """What reading the encoders once and multiplying them takes at least, from rates measured here."""
    present = [layer for layer in dictionary.present if any(source.layer < layer for source in sources)]
    n_bytes = sum(dictionary.at(layer).W_enc.tensor.nbytes for layer in present)
    products = sum(dictionary.widths[layer] * sum(source.layer < layer for source in sources) for layer in present)
    rates = rates_of(dictionary, len(sources), present, device)
    work = 2 * products * dictionary.d_model
    return {
        "bytes": n_bytes,
        "operations": work,
        **rates,
        "read_s": n_bytes / rates["read_gb_s"] / 1e9,
        "multiply_float32_s": work / rates["float32_gflop_s"] / 1e9,
        "multiply_bfloat16_s": work / rates["bfloat16_gflop_s"] / 1e9,
    }


def rates_of(dictionary: Dictionary, n: int, present: list[int], device: torch.device) -> dict[str, float]:
    """Read bandwidth over the mapped encoders and rates of products of n rows with a block of encoders, the best of several runs."""
    tensors = [dictionary.at(layer).W_enc.tensor for layer in present]
    mapped = [tensor.view(torch.int64) for tensor in tensors]
    # A sum reads every byte once; where an accelerator multiplies, what is read has to be copied to it.
    reading = [timed(lambda: [each.to(device) if device.type != "cpu" else each.sum() for each in mapped])["wall_s"] for _ in range(4)]
    block = torch.randn(virtual_weights.BLOCK_ELEMENTS // dictionary.d_model, dictionary.d_model, device=device)
    found = {"read_gb_s": sum(tensor.nbytes for tensor in tensors) / min(reading) / 1e9}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(n, dictionary.d_model, device=device).to(dtype), block.to(dtype).T
        times = [timed(partial(multiplied, left, right, device))["wall_s"] for _ in range(12)]
        found[f"{str(dtype).removeprefix('torch.')}_gflop_s"] = 20 * 2 * n * block.numel() / min(times) / 1e9
    return found


def multiplied(left: torch.Tensor, right: torch.Tensor, device: torch.device) -> None:
    """Twenty products, waited for."""
    for _ in range(20):
        left @ right
    if device.type == "cuda":
        torch.cuda.synchronize()


def case(folder: Path, shape: dict[str, int], what: dict[str, Any]) -> Measured:
    """One measurement, in a process of its own."""
    device = torch.device(what["device"])
    dictionary, activations = opened(folder, shape, what["n_features"]), read_activations(folder, shape, what["n_tokens"])
    before = resident()
    activations = cut(activations, dictionary.widths[0])
    sources = [FeatureId.parse(name) for name in what["sources"]]
    subject = cast(Subject, SimpleNamespace(dictionary=dictionary, model=None))

    def ours() -> None:
        strongest_targets(subject, activations, sources, top=TOP, support=SUPPORT, device=device)

    if what["kind"] == "parts":
        return parts(subject, activations, sources, device)
    ours()
    used = resident()
    runs, bounds, loops = [], [], []
    for _ in range(what["repeats"]):  # the machine is shared: its rates and the loop are measured beside every run
        runs.append(timed(ours))
        bounds.append(bound(dictionary, sources, device))
        if what["beside"]:
            loops.append(timed(lambda: naive(subject, activations, [FeatureId.parse(name) for name in what["beside"]])))
    found = {**medians(runs), "held_before_mb": before["anonymous_mb"], **used, **ratios(runs, bounds), "bound": medians(bounds)}
    return {**found, **(against(runs, loops, len(sources)) if loops else {})}


def against(runs: list[dict[str, float]], loops: list[dict[str, float]], n: int) -> Measured:
    """Each run against a loop over as many candidates, extrapolated from ``NAIVE`` of them: medians."""
    return {
        "naive": {name: value / NAIVE for name, value in medians(loops).items() if name != "runs"},
        "naive_runs": len(loops),
        "naive_times": statistics.median(n * loop["wall_s"] / NAIVE / own["wall_s"] for own, loop in zip(runs, loops, strict=True)),
        "naive_times_cpu": statistics.median(n * loop["cpu_s"] / NAIVE / own["cpu_s"] for own, loop in zip(runs, loops, strict=True)),
    }


def ratios(runs: list[dict[str, float]], bounds: list[dict[str, float]]) -> dict[str, float]:
    """Each run against the bound measured beside it: medians."""
    floors = {
        "bound_s": [max(each["read_s"], each["multiply_float32_s"]) for each in bounds],
        "bfloat16_bound_s": [max(each["read_s"], each["multiply_bfloat16_s"]) for each in bounds],
    }
    times = {
        f"times_{name.removesuffix('_s')}": statistics.median(run["wall_s"] / floor for run, floor in zip(runs, floor_s, strict=True))
        for name, floor_s in floors.items()
    }
    return {name: statistics.median(floor_s) for name, floor_s in floors.items()} | times


def parts(subject: Subject, activations: TokenActivations, sources: list[FeatureId], device: torch.device) -> Measured:
    """The virtual weights alone, in the same way."""
    dictionary = subject.dictionary

    def virtual() -> None:
        written = virtual_weights.Written(dictionary=dictionary, sources=sources)
        for layer in dictionary.present[1:]:
            active = [place for place, source in enumerate(sources) if source.layer < layer]
            if active:
                for make in virtual_weights.panels(dictionary.at(layer).W_enc, written.before(layer)[active], device):
                    make()

    return {"virtual_weights": medians(repeated(virtual, REPEATS))}


def measured(folder: Path, shape: dict[str, int], **what: Any) -> Measured:
    """``case`` in a new process."""
    command = [sys.executable, __file__, "--case", json.dumps({"folder": str(folder), "shape": shape, "what": what})]
    # Threads that wait for each other give the processor away: on a shared machine they would hold up what they wait for.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: Measured = json.loads(done.stdout)
    sys.stderr.write(f"{what['kind']} {what['n_features']} features, {len(what['sources'])} candidates: {found}\n")
    return found


def measurements(folder: Path, shape: dict[str, int], chosen: list[FeatureId], n_tokens: int, device: str) -> Measured:
    """All of them."""
    whole = shape["n_layers"] * shape["n_features"]
    names = [str(feature) for feature in chosen]
    small = [str(feature) for feature in chosen if feature.index < shape["n_features"] // 16][:100]

    middle = shape["n_layers"] // 4 - 1
    typical = names[middle : middle + NAIVE]  # of layers that have as many later ones as candidates have on average

    def measure(sources: list[str], size: int = whole, tokens: int = n_tokens, kind: str = "ours", **more: Any) -> Measured:
        more = {"n_features": size, "n_tokens": tokens, "sources": sources, "repeats": REPEATS, "beside": (), **more}
        return measured(folder, shape, kind=kind, device=device, **more)

    return {
        "candidates": {n: measure(names[:n], beside=typical if n == 100 else ()) for n in (1, 10, 100, 1000) if n <= len(names)},
        "features": {size: measure(small, size) for size in (whole // 16, whole // 4, whole)},
        "features_candidates": len(small),
        "tokens": {tokens: measure(names[:100], tokens=tokens) for tokens in (n_tokens * 2, n_tokens * MOST)},
        "virtual_weights_alone": measure(names[:100], kind="parts")["virtual_weights"],
    }


def machine(device: str) -> dict[str, object]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = {"python": platform.python_version(), "torch": version("torch"), "scipy": version("scipy"), "numpy": version("numpy")}
    accelerator = {"accelerator": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "processor": processor, **accelerator, **versions}


def rounded(value: Any) -> Any:
    """Figures to four digits."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def draw(found: Measured, path: Path) -> None:
    """Seconds against candidates and against features, on logarithmic axes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ulterior"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    ours, loop = found["candidates"], found["candidates"]["100"]["naive"]["wall_s"]
    n = [int(each) for each in ours]
    axes[0].plot(n, [each * loop for each in n], "--", color="#999999", label="a loop over candidates (extrapolated)")
    axes[0].plot(n, [each["wall_s"] for each in ours.values()], "o-", color="#c46216", label="all candidates in one pass")
    axes[0].plot(n, [each["bound_s"] for each in ours.values()], ":", color="#444444", label="bound of the machine, float32")
    axes[0].set(xscale="log", yscale="log", xlabel=f"candidates ({found['n_features']:,} features)", ylabel="seconds")
    sizes = found["features"]
    x = [int(each) for each in sizes]
    axes[1].plot(x, [each["wall_s"] for each in sizes.values()], "o-", color="#c46216")
    axes[1].plot(x, [each["bound_s"] for each in sizes.values()], ":", color="#444444")
    axes[1].set(xscale="log", yscale="log", xlabel=f"features ({found['features_candidates']} candidates)")
    axes[1].set_xticks(x, [f"{each:,}" for each in x])
    axes[1].minorticks_off()
    axes[0].legend(frameon=False, fontsize="small")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def run(shape: dict[str, int], n_tokens: int, n_candidates: int, device: str, room: Path) -> Measured:
    """Make, measure."""
    folder = room / "clt"
    make_clt(folder, **shape)
    encoders(folder, shape)
    layers = zipf(shape, n_tokens * MOST)
    chosen = list(dict.fromkeys(drawn([layer[:n_tokens] for layer in layers], 2 * n_candidates)))[:n_candidates]  # some are drawn twice
    decoders(folder, shape, chosen)
    stored(folder, layers)
    l0 = sum(layer.nnz for layer in layers) / (n_tokens * MOST) / shape["n_layers"]
    del layers
    found = measurements(folder, shape, chosen, n_tokens, device)
    hundred = found["candidates"][100]
    ratio = {"hundred_against_naive": hundred["naive_times"], "hundred_times_bound": hundred["times_bound"], "peak_mb": hundred["peak_mb"]}
    facts = {"shape": shape, "n_features": shape["n_layers"] * shape["n_features"], "n_tokens": n_tokens, "l0": l0, "top": TOP}
    return {**facts, "support": SUPPORT, "device": device, **ratio, **found, "machine": machine(device)}


def main() -> None:
    """Make, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small shape, to try the script; nothing is written")
    parser.add_argument("--device", default="cpu", help="that multiplies: cpu or cuda, whose row is added to the result that is there")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the made corpus")
    parser.add_argument("--folder", type=Path, help="for temporary files: 3 GB")
    parser.add_argument("--part", choices=("candidates", "atlas"), help="only this")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        asked = json.loads(given.case)
        sys.stdout.write(json.dumps(case(Path(asked["folder"]), asked["shape"], asked["what"])))
        return
    if given.part != "atlas":
        candidates(given)
    if given.part != "candidates" and not given.quick:
        atlas(given)


def candidates(given: argparse.Namespace) -> None:
    """All but the atlas."""
    shape, n_tokens, n = (QUICK, 2_048, 100) if given.quick else (FULL, given.tokens, 1000)
    with tempfile.TemporaryDirectory(dir=given.folder) as room:
        if shutil.disk_usage(room).free < 8e9:
            sys.exit("The benchmark needs 8 GB of free disk.")
        found = rounded(run(shape, n_tokens, n, given.device, Path(room)))
    found["machine"]["load"] = os.getloadavg()[0]
    if not given.quick:
        publish(found, given.device)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


def atlas(given: argparse.Namespace) -> None:
    """The atlas, by a process of its own."""
    script = str(Path(__file__).parent / "atlas_case.py")
    command = [sys.executable, script, "--device", given.device, "--tokens", str(given.tokens)]
    command += ["--folder", str(given.folder)] if given.folder else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
    publish({"atlas": rounded(json.loads(done.stdout))}, given.device)


def publish(found: Measured, device: str) -> None:
    """Write a part of the result; those of an accelerator stand beside those of the processor."""
    path = RESULTS / "connections.json"
    whole = json.loads(path.read_text()) if path.exists() else {}
    (whole if device == "cpu" else whole.setdefault("accelerator", {})).update(found)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    if device == "cpu" and "candidates" in found:
        draw(found, RESULTS / "connections.svg")


if __name__ == "__main__":
    main()
