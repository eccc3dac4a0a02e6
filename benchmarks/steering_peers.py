"""One way to write many steered continuations of a prompt, in a process of its own that is asked over its standard input.

    python benchmarks/steering_peers.py ARM --model FOLDER --vectors FILE

It runs in the environment of the arm's library, so it imports nothing of the project except for the arm ``ours``:

    loop              transformers ``generate`` and a forward hook, one call a configuration
    batched           transformers ``generate`` with all configurations as rows and a hook that adds each row its vector
    steering_vectors  ``SteeringVector.apply`` around ``generate``, one call a configuration
    nnsight           ``TransformersModel.generate`` with a write in every step, one call a configuration
    ours              the project's engine

Every line of input is one piece of ``Work``, every line of output what it took and what was written. Position 0 is never written to;
``all`` writes to every other one, ``generated`` in the passes over one token alone. Nothing ends a continuation but its length.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

Tokens = list[list[list[int]]]
"""Configuration → sample → token ids."""
LIBRARIES = {"steering_vectors": "steering-vectors", "nnsight": "nnsight"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be written."""

    prompt_ids: list[int]
    layer: int
    """After whose block the residual stream is written to."""
    positions: str
    """``all`` or ``generated``."""
    configurations: list[int]
    """Which of the layer's vectors, one a configuration."""
    samples: int
    """Rows a configuration; decoding is greedy, so they are alike."""
    new_tokens: int
    rows: int | None
    """Rows decoded at a time by the project's engine; None lets it choose."""
    tokens: bool
    """Whether the tokens are sent back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a process is started with."""

    model: Path
    """A transformers directory."""
    vectors: Path
    """A safetensors file of one tensor a layer, (n_configurations, d_model) float32, by the layer's number."""
    dtype: str
    device: str


Arm = Callable[[Work], Tokens]
"""One of the project's has an attribute ``engine``: which of its ways to run a model it has chosen."""


def added(x: Tensor, vectors: Tensor, positions: str) -> Tensor:
    """Hidden states (rows, tokens, d_model) with vectors (1 or rows, d_model) added where the treatment writes."""
    wide = vectors.to(x)[:, None]
    if x.shape[1] == 1:
        return x + wide
    if positions == "generated":
        return x
    return torch.cat([x[:, :1], x[:, 1:] + wide], dim=1)


@contextmanager
def hooked(layer: nn.Module, vectors: Tensor, positions: str) -> Iterator[None]:
    """A forward hook on a layer."""

    def write(module: nn.Module, args: object, output: Any) -> Any:
        if isinstance(output, tuple):
            return (added(output[0], vectors, positions), *output[1:])
        return added(output, vectors, positions)

    handle = layer.register_forward_hook(write)
    try:
        yield
    finally:
        handle.remove()


class Plain:
    """Transformers, and the vectors."""

    def __init__(self, given: Given) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        dtype = getattr(torch, given.dtype)
        self.hf = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype, local_files_only=True).to(given.device).eval()
        self.hf.generation_config.eos_token_id = None
        self.vectors = {int(name): tensor.to(given.device) for name, tensor in load_file(given.vectors).items()}

    def layer(self, index: int) -> nn.Module:
        """A decoder layer."""
        found: nn.Module = self.hf.model.layers[index]
        return found

    def ids(self, work: Work, n: int) -> Tensor:
        """The prompt, (n, tokens)."""
        return torch.tensor([work.prompt_ids], device=self.hf.device).expand(n, -1).contiguous()

    def options(self, ids: Tensor, work: Work) -> dict[str, Any]:
        """Of ``generate``: greedy, of fixed length."""
        return {"attention_mask": torch.ones_like(ids), "max_new_tokens": work.new_tokens, "do_sample": False, "pad_token_id": 0}

    def written(self, work: Work, n: int) -> list[list[int]]:
        """New tokens of n rows."""
        ids = self.ids(work, n)
        return self.cut(self.hf.generate(input_ids=ids, **self.options(ids, work)), work, n)

    def cut(self, found: Tensor, work: Work, n: int) -> list[list[int]]:
        """The new tokens of what ``generate`` gives, (n, new_tokens)."""
        new = found[:, len(work.prompt_ids) :]
        if tuple(new.shape) != (n, work.new_tokens):
            raise RuntimeError(f"{tuple(new.shape)} new tokens, not {(n, work.new_tokens)}")
        tokens: list[list[int]] = new.tolist()
        return tokens


def loop(given: Given) -> Arm:
    """One call of ``generate`` a configuration."""
    plain = Plain(given)

    def write(work: Work) -> Tokens:
        found = []
        for each in work.configurations:
            with hooked(plain.layer(work.layer), plain.vectors[work.layer][each][None], work.positions):
                found.append(plain.written(work, work.samples))
        return found

    return write


def batched(given: Given) -> Arm:
    """All configurations in one call of ``generate``."""
    plain = Plain(given)

    def write(work: Work) -> Tokens:
        vectors = plain.vectors[work.layer][work.configurations].repeat_interleave(work.samples, dim=0)
        with hooked(plain.layer(work.layer), vectors, work.positions):
            rows = plain.written(work, len(vectors))
        return [rows[start : start + work.samples] for start in range(0, len(rows), work.samples)]

    return write


def steering_vectors(given: Given) -> Arm:
    """The library's own patch around ``generate``, one call a configuration."""
    from steering_vectors import SteeringVector

    plain = Plain(given)

    def write(work: Work) -> Tokens:
        def operator(x: Tensor, vector: Tensor) -> Tensor:
            # The library's choice of tokens counts from the beginning of every pass; an operator can tell the prompt's from the others.
            wide = vector.to(x).expand(1, x.shape[1], -1).clone()
            if x.shape[1] > 1:
                wide[:, : 1 if work.positions == "all" else None] = 0
            return wide

        found = []
        for each in work.configurations:
            vector = SteeringVector({work.layer: plain.vectors[work.layer][each]}, "decoder_block")
            with vector.apply(plain.hf, operator=operator):
                found.append(plain.written(work, work.samples))
        return found

    return write


def nnsight(given: Given) -> Arm:
    """A trace of ``generate`` with a write in every step, one call a configuration."""
    from nnsight import TransformersModel
    from transformers import AutoTokenizer

    plain = Plain(given)
    traced = TransformersModel(plain.hf, tokenizer=AutoTokenizer.from_pretrained(given.model), task="text-generation")

    def one(work: Work, vector: Tensor) -> list[list[int]]:
        ids, layer, positions, steps = plain.ids(work, work.samples), work.layer, work.positions, work.new_tokens
        with traced.generate(ids, **plain.options(ids, work)) as tracer:
            for _ in tracer.iter[:steps]:
                traced.model.layers[layer].output = added(traced.model.layers[layer].output, vector, positions)
            found = tracer.result.save()
        return plain.cut(found, work, work.samples)

    return lambda work: [one(work, plain.vectors[work.layer][each][None]) for each in work.configurations]


def ours(given: Given) -> Arm:
    """The project's engine."""
    import numpy as np

    from audit.events import SilentObserver
    from audit.records import Operation, Positions, StrengthUnit, Treatment
    from audit.steering.generation import Request, engine_of, generate

    subject, scales = made_subject(given)

    def treatment(work: Work, each: int) -> Treatment:
        return Treatment(
            direction=f"vector/{work.layer}/{each}",
            operation=Operation.ADDITIVE,
            strength=1.0,
            unit=StrengthUnit.ABSOLUTE,
            layers=(work.layer,),
            positions=Positions(work.positions),
            dictionary_sha256=subject.dictionary.sha256,
        )

    def write(work: Work) -> Tokens:
        request = Request(
            prompt_ids=tuple(work.prompt_ids),
            treatments=tuple(treatment(work, each) for each in work.configurations),
            uniforms=np.zeros((work.samples, work.new_tokens)),
            temperature=0.0,
            rows=work.rows,
            ends=(),
        )
        found: Tokens = [[[]] * work.samples for _ in work.configurations]
        for written in generate(subject, request, scales, observer=SilentObserver()):
            found[written.configuration][written.sample] = list(written.token_ids)
        return found

    write.engine = " ".join(engine_of(subject.model)).strip()  # type: ignore[attr-defined]
    return write


def made_subject(given: Given) -> tuple[Any, Any]:
    """The model with the vectors as its dictionary of directions, and scales of which no absolute strength asks anything."""
    from audit.steering.strengths import Scales
    from audit.subject.dictionary import Dictionary, LayerWeights
    from audit.subject.loading import known_dtype
    from audit.subject.matrix import Matrix
    from audit.subject.model import open_model

    model = open_model(given.model, dtype=known_dtype(given.dtype), device=given.device)
    layers: list[LayerWeights | None] = [None] * model.n_layers
    for name, drawn in load_file(given.vectors).items():
        W_enc, W_dec = Matrix(drawn / drawn.norm(dim=1, keepdim=True), "made"), Matrix(drawn[:, None], "made")
        layers[int(name)] = LayerWeights(W_enc=W_enc, b_enc=torch.zeros(len(drawn)), W_dec=W_dec)
    dictionary = Dictionary(
        kind="vector",
        format="made",
        n_layers=model.n_layers,
        d_model=model.d_model,
        input_hook="resid_post",
        output_hook="resid_post",
        path=Path("made"),
        files=(),
        layers=tuple(layers),
        b_dec=(None,) * model.n_layers,
        sha256="0" * 64,
    )
    scales = Scales(residual_norm=(1.0,) * model.n_layers, max_activation=())
    return SimpleNamespace(model=model, dictionary=dictionary, info=None, corpus=()), scales


ARMS: dict[str, Callable[[Given], Arm]] = {each.__name__: each for each in (loop, batched, steering_vectors, nnsight, ours)}


def status(key: str) -> float | None:
    """Memory of this process, MB, by its name in Linux's status file."""
    path = Path("/proc/self/status")
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.exists() else {}
    return int(rows[key].split()[0]) / 1000 if key in rows else None


def settle(device: str) -> float | None:
    """Give back what is not used and forget the peak so far; the resident memory that is left, MB."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: str) -> float:
    """Highest memory since ``settle``, MB: resident, or allocated on the accelerator. Off Linux it is the highest of the process's life."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 1e6
    return status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def answer(arm: Arm, work: Work, device: str) -> dict[str, Any]:
    """Do the work and say what it took."""
    held = settle(device)
    wall, cpu = time.perf_counter(), time.process_time()
    found = arm(work)
    took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return {**took, "held_mb": held, "peak_mb": peak(device), "tokens": found if work.tokens else None}


def main() -> None:
    """Answer every line of standard input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=list(ARMS))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries say is not an answer
    torch.set_num_threads(asked.threads)
    began = time.perf_counter()
    arm = ARMS[asked.arm](Given(model=asked.model, vectors=asked.vectors, dtype=asked.dtype, device=asked.device))
    library = LIBRARIES.get(asked.arm)
    versions = {name: version(name) for name in ("torch", "transformers", *([library] if library else []))}
    began_with = {"load_s": time.perf_counter() - began, "versions": versions, "engine": getattr(arm, "engine", None)}
    answers.write(json.dumps(began_with) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(answer(arm, Work(**json.loads(line)), asked.device)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
