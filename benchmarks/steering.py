"""How fast many treatments of one prompt are written, beside what people would do without this project's engine.

    python benchmarks/steering.py [--cells small flat main peers bf16 1b grid shares gpu] [--threads 1] [--device cuda]

Models are random weights of real shapes, saved once and opened by every arm; each arm is a process of its own
(``steering_peers.py``) that stays and is asked in turn, so that runs are interleaved. Arms are

    loop              transformers ``generate`` and a forward hook, one call a configuration: what the others are held against
    batched           transformers ``generate``, all configurations as rows, one vector a row
    steering_vectors  steering-vectors, in an environment of its own, one call a configuration
    nnsight           nnsight, in an environment of its own, one call a configuration
    ours              the project's engine

A cell is a shape, dtype, prompt length P, number of samples N and of configurations C, layer written and positions. Every
configuration adds a random direction of half the residual stream's norm, so that each writes another text. Decoding is greedy and of a
fixed length. Where a loop is timed on some of the configurations only, its calls being independent, the file says on how many, and
seconds are scaled to all of them.

Parts: ``small`` (a short prompt, one configuration), ``flat`` (as many rows of 1 to 64 configurations), ``main`` (P 1,024, N 4, C 16),
``peers`` (the libraries), ``bf16``, ``1b`` (four layers of Llama-3.2-1B's shape), ``grid`` (every P, N and C at half the depth),
``shares`` (the same at 25 and 75 %), ``gpu`` (whole shapes on an accelerator). The first three are run by default. Each cell is merged
into ``benchmarks/results/steering.json`` as it is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # what reads a result imports this file from elsewhere

from steering_cells import FLAT, NEW_TOKENS, PARTS, SHAPES, STRENGTH, Cell, groups, quick  # noqa: E402
from steering_figure import draw, summary  # noqa: E402

__all__ = ["draw", "main", "summary"]

RESULT = HERE / "results" / "steering.json"
OWN = {"steering_vectors", "nnsight"}
"""Arms with an environment of their own, made from the list of versions beside this file."""
Measured = dict[str, Any]


# --- models, environments, processes ----------------------------------------------------------------------------------------------------


def make_model(folder: Path, shape: str, dtype: str, n_vectors: int) -> None:
    """A transformers directory of random weights with a tokenizer that knows numbers, and ``vectors.safetensors`` in it."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SHAPES[shape], bos_token_id=0, eos_token_id=None, pad_token_id=0)
    hf = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    words = {"<bos>": 0, **{str(n): n for n in range(1, config.vocab_size)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<bos>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<bos>").save_pretrained(folder)
    hf.save_pretrained(folder)
    with torch.inference_mode():
        states = hf(torch.tensor([prompt(config.vocab_size, 128)]), output_hidden_states=True, use_cache=False).hidden_states
    vectors = {}
    for layer in sorted({config.num_hidden_layers * share // 100 - 1 for share in (25, 50, 75)}):
        drawn = torch.randn(n_vectors, config.hidden_size)
        norm = states[layer + 1][0, 1:].float().norm(dim=-1).mean()
        vectors[str(layer)] = STRENGTH * norm * drawn / drawn.norm(dim=1, keepdim=True)
    save_file(vectors, folder / "vectors.safetensors")


def prompt(vocabulary: int, n: int) -> list[int]:
    """A BOS token and random others."""
    import torch

    drawn: list[int] = torch.randint(10, vocabulary, (n - 1,), generator=torch.Generator().manual_seed(n)).tolist()
    return [0, *drawn]


def environment(name: str) -> Path:
    """The interpreter of a library's own environment, built if it is missing; its folder is named by a digest of the versions."""
    listed = HERE / f"{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulterior" / "benchmarks"
    folder = cache / f"{name}-{hashlib.sha256(listed.read_bytes()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / "finished").exists():
        say(f"building {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, stdout=sys.stderr)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", listed], check=True, stdout=sys.stderr)
        (folder / "finished").touch()
    return python


class Worker:
    """An arm's process."""

    def __init__(self, arm: str, model: Path, dtype: str, *, device: str, threads: int) -> None:
        python = environment(arm) if arm in OWN else Path(sys.executable)
        options = {"model": model, "vectors": model / "vectors.safetensors", "dtype": dtype, "device": device, "threads": threads}
        command = [python, HERE / "steering_peers.py", arm, *(str(part) for name in options for part in (f"--{name}", options[name]))]
        # Threads that wait for each other give the processor away; the library is not to look for its server.
        own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **own})
        self.began = self._read()

    def ask(self, work: Measured) -> Measured:
        """What it took."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> Measured:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended with {self.process.wait()}: {self.process.args}")
        found: Measured = json.loads(line)
        return found

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(arms: Sequence[str], model: Path, dtype: str, *, device: str, threads: int) -> Iterator[dict[str, Worker]]:
    """A process for each arm."""
    found: dict[str, Worker] = {}
    try:
        for arm in arms:
            found[arm] = Worker(arm, model, dtype, device=device, threads=threads)
        yield found
    finally:
        for worker in found.values():
            worker.close()


def say(text: str) -> None:
    """On the way."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


# --- measuring --------------------------------------------------------------------------------------------------------------------------


def measured(cell: Cell, found: dict[str, Worker]) -> Measured:
    """One cell, all its arms in turn, the first of every round another one."""
    arms = list(cell.runs)
    base: Measured = {
        "prompt_ids": prompt(SHAPES[cell.shape]["vocab_size"], cell.prompt_tokens),
        "layer": cell.layer,
        "positions": cell.positions,
        "samples": cell.samples,
        "new_tokens": NEW_TOKENS,
        "rows": None,
        "tokens": False,
    }
    warm = {arm: found[arm].ask({**base, "configurations": [0], "new_tokens": 4})["wall_s"] for arm in arms}
    runs: dict[str, list[Measured]] = {arm: [] for arm in arms}
    for at in range(max(cell.runs.values())):
        for arm in arms[at % len(arms) :] + arms[: at % len(arms)]:
            if at < cell.runs[arm]:
                runs[arm].append(found[arm].ask({**base, "configurations": list(range(cell.n_timed(arm))), "tokens": at == 0}))
    each = {arm: {**row(cell, arm, runs[arm], runs["loop"][0]["tokens"]), "warm_up_s": warm[arm]} for arm in arms}
    return {
        **facts(cell),
        "engine": found["ours"].began["engine"],
        "arms": each,
        "times_loop": {arm: against(cell, runs, arm) for arm in arms if arm != "loop"},
    }


def facts(cell: Cell) -> Measured:
    """What was measured."""
    names = ("shape", "dtype", "prompt_tokens", "samples", "configurations", "share", "layer", "positions", "target")
    return {**{name: getattr(cell, name) for name in names}, "new_tokens": NEW_TOKENS}


def row(cell: Cell, arm: str, runs: list[Measured], reference: list[list[list[int]]]) -> Measured:
    """Medians of an arm, scaled to all configurations, and how many of its tokens are the loop's."""
    timed = cell.n_timed(arm)
    scale = cell.configurations / timed
    wall, cpu = (scale * statistics.median(run[name] for run in runs) for name in ("wall_s", "cpu_s"))
    n_tokens = cell.configurations * cell.samples * NEW_TOKENS
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "tokens_s": n_tokens / wall,
        "peak_mb": max(run["peak_mb"] for run in runs),
        "held_mb": runs[0]["held_mb"],
        "runs": len(runs),
        "configurations_timed": timed,
        "scaled": timed != cell.configurations,
        **agreement(runs[0]["tokens"], reference),
    }


def agreement(tokens: list[list[list[int]]], reference: list[list[list[int]]]) -> Measured:
    """Share of equal tokens on the configurations that both have written, and how many different texts there are."""
    same = [
        one == other
        for a, b in zip(tokens, reference, strict=False)
        for x, y in zip(a, b, strict=True)
        for one, other in zip(x, y, strict=True)
    ]
    texts = {tuple(sample) for samples in tokens for sample in samples}
    return {"agreement": sum(same) / len(same), "agreement_tokens": len(same), "texts": len(texts)}


def against(cell: Cell, runs: dict[str, list[Measured]], arm: str) -> Measured:
    """Each run of an arm against the loop's of the same round: medians, least and most; seconds of all configurations."""
    found = {}
    for name in ("wall_s", "cpu_s"):
        pairs = zip(runs["loop"], runs[arm], strict=False)
        ratios = [(cell.n_timed(arm) * loop[name]) / (cell.n_timed("loop") * own[name]) for loop, own in pairs]
        short = name.removesuffix("_s")
        found |= {short: statistics.median(ratios), f"{short}_least": min(ratios), f"{short}_most": max(ratios)}
    return found


def flat(worker: Worker, shape: str) -> Measured:
    """Decoding speed of as many rows of 1 to 64 configurations: what 33 tokens take longer than one, in turn."""
    p, rows, repeats = FLAT["prompt_tokens"], FLAT["rows"], FLAT["repeats"]
    base = {"prompt_ids": prompt(SHAPES[shape]["vocab_size"], p), "positions": "generated", "rows": rows, "tokens": False}
    base["layer"] = SHAPES[shape]["num_hidden_layers"] // 2 - 1
    speeds: dict[int, dict[str, list[float]]] = {n: {"wall": [], "cpu": []} for n in FLAT["configurations"]}
    for at in range(repeats + 1):  # one round warms up
        for n in FLAT["configurations"]:
            asked = {**base, "configurations": list(range(n)), "samples": rows // n}
            long, short = (worker.ask({**asked, "new_tokens": steps}) for steps in (NEW_TOKENS + 1, 1))
            for name, of in speeds[n].items() if at else ():
                of.append(rows * NEW_TOKENS / (long[f"{name}_s"] - short[f"{name}_s"]))
    tokens_s = {n: {f"{name}_tokens_s": statistics.median(each) for name, each in of.items()} for n, of in speeds.items()}
    spread = {name: max(of[f"{name}_tokens_s"] for of in tokens_s.values()) for name in ("wall", "cpu")}
    spread = {name: most / min(of[f"{name}_tokens_s"] for of in tokens_s.values()) - 1 for name, most in spread.items()}
    facts = {"shape": shape, "prompt_tokens": p, "rows": rows, "new_tokens": NEW_TOKENS, "positions": "generated", "runs": repeats}
    return {**facts, "configurations": tokens_s, "spread_wall": spread["wall"], "spread_cpu": spread["cpu"], "target": 0.1}


# --- the result -------------------------------------------------------------------------------------------------------------------------


def machine(device: str, threads: int) -> Measured:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found: Measured = {"cores": os.cpu_count(), "threads": threads, "processor": processor}
    if device.startswith("cuda"):
        import torch

        found["accelerator"] = torch.cuda.get_device_name()
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    return {**found, "python": platform.python_version(), **versions}


METHOD = {
    "order": "arms in turn, each a process that stays; the first of a round is another one each time; ratios are medians over rounds",
    "cpu_s": "seconds of processor of the arm's own process, all threads",
    "peak_mb": "highest resident memory of the arm's process in its runs, reset before each (accelerator: memory allocated there)",
    "held_mb": "resident before the first run: weights and libraries",
    "warm_up_s": "before the first run, one configuration of four tokens; not counted",
    "scaled": "timed on configurations_timed of the configurations, seconds multiplied by what is missing",
    "agreement": "share of tokens equal to the loop's, on the configurations that both wrote in the first run",
    "texts": "different continuations of the first run",
    "times_loop": "seconds of the loop divided by the arm's",
}


def rounded(value: Any) -> Any:
    """Figures to four digits."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def publish(path: Path, section: str, key: str, found: Measured) -> Measured:
    """Put a piece into the result; the whole."""
    whole: Measured = (
        json.loads(path.read_text()) if path.exists() else {"strength": STRENGTH, "method": METHOD, "machines": {}, "cells": {}}
    )
    whole.setdefault(section, {})[key] = rounded(found)
    path.write_text(json.dumps(whole, indent=1) + "\n")
    return whole


def run(asked: argparse.Namespace, path: Path) -> None:
    """Measure what was asked for, piece by piece."""
    here = machine(asked.device, asked.threads)
    for (shape, dtype), cells in (quick() if asked.quick else groups(asked.cells, asked.only)).items():
        arms = list(dict.fromkeys(arm for _, cell in cells for arm in cell.runs))
        with tempfile.TemporaryDirectory(dir=asked.folder) as room:
            make_model(Path(room), shape, dtype, max(cell.configurations for _, cell in cells))
            with workers(arms, Path(room), dtype, device=asked.device, threads=asked.threads) as found:
                for worker, of in found.items():
                    publish(path, "libraries", worker, of.began["versions"])
                for part, cell in cells:
                    took = measured(cell, found)
                    key = cell.key if asked.device == "cpu" else f"{asked.device} {cell.key}"
                    publish(path, "cells", key, {**took, "part": part, "device": asked.device})
                    say(f"{cell.key}: {rounded(took['times_loop'])}, {rounded(took['arms'])}")
                    publish(path, "machines", part, {**here, "load": os.getloadavg()[0]})
    if "flat" in asked.cells or asked.quick:
        shape = "tiny" if asked.quick else "6l"
        with tempfile.TemporaryDirectory(dir=asked.folder) as room:
            make_model(Path(room), shape, "float32", max(FLAT["configurations"]))
            with workers(["ours"], Path(room), "float32", device=asked.device, threads=asked.threads) as found:
                whole = publish(path, "flat", shape, flat(found["ours"], shape))
        publish(path, "machines", "flat", {**here, "load": os.getloadavg()[0]})
        say(str(whole["flat"]))


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=PARTS, help="parts; by default small, flat and main, with cuda gpu")
    parser.add_argument("--only", default="", help="of these cells only those whose name has this in it")
    parser.add_argument("--threads", type=int, default=1, help="of every arm")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--folder", type=Path, help="for temporary files: weights, up to 5 GB")
    parser.add_argument("--quick", action="store_true", help="a tiny shape with every arm, to try the script; nothing is written")
    parser.add_argument("--draw", action="store_true", help="measure nothing; draw the result that is there")
    asked = parser.parse_args()
    asked.cells = asked.cells or (["gpu"] if asked.device.startswith("cuda") else ["small", "flat", "main"])
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "steering.json" if asked.quick else RESULT
        if not asked.draw:
            run(asked, path)
        whole = json.loads(path.read_text())
        draw(whole, path.with_suffix(".svg"))
        sys.stdout.write((json.dumps(whole, indent=1) if asked.quick else summary(whole)) + "\n")


if __name__ == "__main__":
    main()
