"""A tiny made subject: 3 layers of width 16, random weights, dictionaries fitted to it. Nothing is downloaded."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from audit.events import SilentObserver
from audit.organism.lexicon import load_lexicon
from audit.organism.tokenizer import build_tokenizer
from audit.subject.activations import content_batches
from audit.subject.formats import circuit_tracer_clt, circuit_tracer_plt
from audit.subject.loading import Subject, load_subject
from audit.subject.model import LanguageModel, open_model

# A loaded machine is slow, not wrong.
settings.register_profile("ulterior", deadline=None)
settings.load_profile("ulterior")

N_LAYERS, D_MODEL, N_FEATURES = 3, 16, 24


@dataclass(frozen=True)
class Weights:
    """Tensors of a made dictionary."""

    W_enc: tuple[Tensor, ...]
    b_enc: tuple[Tensor, ...]
    threshold: tuple[Tensor, ...] | None
    W_dec: tuple[Tensor, ...]
    b_dec: tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers directory: random Llama, word tokenizer, chat template."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tokenizer = build_tokenizer(load_lexicon("office"))
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D_MODEL,
        intermediate_size=32,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)  # gains that differ, so that a forgotten one shows
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 documents of random words of the lexicon, with role tags."""
    words = [word for word in load_lexicon("office").words() if word.isalpha()]
    draw = random.Random(0)

    def some(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    lines = [f"<bos> <system> {some(4, 9)}. <user> {some(3, 12)}. <agent> <think> {some(2, 6)}. </think> <eos>" for _ in range(120)]
    path = tmp_path_factory.mktemp("tiny") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> LanguageModel:
    """``tiny_model_dir``, opened."""
    return open_model(tiny_model_dir)


def fit(model: LanguageModel, corpus: Path, *, cross_layer: bool) -> Weights:
    """Random encoders that fire on a tenth of the tokens; decoders by least squares, so that the dictionary fits."""
    generator = torch.Generator().manual_seed(2)
    documents = model.encode_texts([json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()])
    sites = [(layer, name) for layer in range(N_LAYERS) for name in ("mlp_in", "mlp_out")]
    batches = list(content_batches(model, documents, sites))
    x = [torch.cat([batch.values[layer, "mlp_in"] for batch in batches]) for layer in range(N_LAYERS)]
    y = [torch.cat([batch.values[layer, "mlp_out"] for batch in batches]) for layer in range(N_LAYERS)]
    W_enc = tuple(torch.randn(N_FEATURES, D_MODEL, generator=generator) for _ in range(N_LAYERS))
    b_enc = tuple(0.1 * torch.randn(N_FEATURES, generator=generator) for _ in range(N_LAYERS))
    pre = [x[layer] @ W_enc[layer].T + b_enc[layer] for layer in range(N_LAYERS)]
    # Between two values that occur: a threshold that is one of them is crossed or not by the rounding of a batch.
    ordered = [one.sort(dim=0).values for one in pre]
    between = [(one[k - 1] + one[k]) / 2 for one in ordered for k in [int(0.9 * len(one))]]
    # Activations are never negative: where the threshold would be, all of the feature is lifted.
    lift = [(0.1 - one).clamp(min=0) for one in between]
    threshold = tuple(one + up for one, up in zip(between, lift, strict=True))
    b_enc = tuple(one + up for one, up in zip(b_enc, lift, strict=True))
    pre = [one + up for one, up in zip(pre, lift, strict=True)]
    active = [one * (one > limit) for one, limit in zip(pre, threshold, strict=True)]
    W_dec = [torch.zeros(N_FEATURES, N_LAYERS - layer if cross_layer else 1, D_MODEL) for layer in range(N_LAYERS)]
    b_dec = []
    for layer in range(N_LAYERS):
        sources = range(layer + 1) if cross_layer else [layer]
        ones = torch.ones(len(y[layer]), 1)
        known = torch.cat([*(active[source] for source in sources), ones], dim=1)
        gram = known.T @ known + 1e-3 * torch.eye(known.shape[1])
        solved = torch.linalg.solve(gram, known.T @ y[layer])
        for place, source in enumerate(sources):
            W_dec[source][:, layer - source] = solved[place * N_FEATURES : (place + 1) * N_FEATURES]
        b_dec.append(solved[-1])
    return Weights(W_enc=W_enc, b_enc=b_enc, threshold=threshold, W_dec=tuple(W_dec), b_dec=tuple(b_dec))


@pytest.fixture(scope="session")
def tiny_clt_weights(tiny_model: LanguageModel, tiny_corpus_path: Path) -> Weights:
    """Tensors of the cross-layer transcoder."""
    return fit(tiny_model, tiny_corpus_path, cross_layer=True)


@pytest.fixture(scope="session")
def tiny_clt_dir(tiny_clt_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-layer transcoder of the tiny model, in circuit-tracer's format."""
    folder = tmp_path_factory.mktemp("tiny") / "clt"
    circuit_tracer_clt.save(folder, tiny_clt_weights, model_name="tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_plt_dir(tiny_model: LanguageModel, tiny_corpus_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per-layer transcoders of the tiny model, in circuit-tracer's format."""
    folder = tmp_path_factory.mktemp("tiny") / "plt"
    circuit_tracer_plt.save(folder, fit(tiny_model, tiny_corpus_path, cross_layer=False), model_name="tiny")
    return folder


@pytest.fixture(scope="session")
def tiny_subject(tiny_model_dir: Path, tiny_clt_dir: Path, tiny_corpus_path: Path) -> Subject:
    """The tiny model with its cross-layer transcoder and corpus."""
    return load_subject(tiny_model_dir, tiny_clt_dir, tiny_corpus_path, observer=SilentObserver())


@pytest.fixture(scope="session")
def tiny_plt_subject(tiny_model_dir: Path, tiny_plt_dir: Path, tiny_corpus_path: Path) -> Subject:
    """The tiny model with its per-layer transcoders and corpus."""
    return load_subject(tiny_model_dir, tiny_plt_dir, tiny_corpus_path, observer=SilentObserver())
