"""A tiny made subject: 3 layers of width 16, random weights, dictionaries fitted to it. Nothing is downloaded."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from audit.subject.dictionary import Dictionary, Kind, LayerWeights
from audit.subject.formats import circuit_tracer_clt, circuit_tracer_plt
from audit.subject.loading import Subject, load_subject
from audit.subject.matrix import Matrix
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


def layer_of(W_enc: Tensor, W_dec: Tensor, b_enc: Tensor | None = None, W_skip: Tensor | None = None, **other: object) -> LayerWeights:
    """Features from dense tensors; ``other`` are fields of ``LayerWeights``."""
    return LayerWeights(
        W_enc=Matrix(W_enc, "W_enc of a made dictionary"),
        b_enc=torch.zeros(len(W_enc)) if b_enc is None else b_enc,
        W_dec=Matrix(W_dec if W_dec.ndim == 3 else W_dec[:, None], "W_dec of a made dictionary"),
        W_skip=None if W_skip is None else Matrix(W_skip, "W_skip of a made dictionary"),
        **other,  # type: ignore[arg-type]
    )


def dictionary_of(
    kind: Kind,
    layers: Sequence[LayerWeights | None],
    *,
    d_model: int,
    b_dec: Sequence[Tensor | None] | None = None,
    hooks: tuple[str, str] = ("mlp_in", "mlp_out"),
) -> Dictionary:
    """A dictionary in memory; hooks are those that it reads and writes."""
    return Dictionary(
        kind=kind,
        format="made",
        n_layers=len(layers),
        d_model=d_model,
        input_hook=hooks[0],
        output_hook=hooks[1],
        path=Path("made"),
        files=(),
        layers=tuple(layers),
        b_dec=tuple([None] * len(layers) if b_dec is None else b_dec),
        sha256="0" * 64,
    )


def dense_of(dictionary: Dictionary) -> Weights:
    """Whole tensors, one a layer; of a dictionary that has features in every one."""
    layers = [dictionary.at(layer) for layer in range(dictionary.n_layers)]
    limits = [each.threshold for each in layers]
    return Weights(
        W_enc=tuple(each.W_enc.rows(slice(None)).clone() for each in layers),
        b_enc=tuple(each.b_enc for each in layers),
        threshold=None if limits[0] is None else tuple(limit for limit in limits if limit is not None),
        W_dec=tuple(each.W_dec.rows(slice(None)).clone() for each in layers),
        b_dec=tuple(each for each in dictionary.b_dec if each is not None),
    )


def with_tensors(dictionary: Dictionary, **tensors: Sequence[Tensor]) -> Dictionary:
    """The same with other dense tensors, by name of a field of ``LayerWeights``, one a layer."""
    layers = []
    for number in range(dictionary.n_layers):
        own = {name: of_layers[number] for name, of_layers in tensors.items()}
        matrices = {name: Matrix(tensor, f"{name} of a made dictionary") for name, tensor in own.items() if name.startswith("W_")}
        layers.append(replace(dictionary.at(number), **{**own, **matrices}))  # type: ignore[arg-type]
    return replace(dictionary, layers=tuple(layers))


@pytest.fixture(scope="session", name="layer_of")
def _layer_of() -> Callable[..., LayerWeights]:
    """``layer_of(W_enc, W_dec, b_enc=..., threshold=..., k=..., ...)``."""
    return layer_of


@pytest.fixture(scope="session", name="dictionary_of")
def _dictionary_of() -> Callable[..., Dictionary]:
    """``dictionary_of(kind, layers, d_model=..., b_dec=..., hooks=...)``."""
    return dictionary_of


@pytest.fixture(scope="session", name="dense_of")
def _dense_of() -> Callable[[Dictionary], Weights]:
    """``dense_of(dictionary)``: its ``Weights``."""
    return dense_of


@pytest.fixture(scope="session", name="with_tensors")
def _with_tensors() -> Callable[..., Dictionary]:
    """``with_tensors(dictionary, W_dec=...)``."""
    return with_tensors


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


@pytest.fixture(scope="session")
def tiny_sae_subject(tiny_subject: Subject) -> Subject:
    """The tiny model with an SAE of its second layer alone, of the residual stream; the third has no features, nor has the first."""
    generator = torch.Generator().manual_seed(4)
    (batch,) = content_batches(tiny_subject.model, tiny_subject.corpus, [(1, "resid_post")], batch_tokens=10**9)
    x = batch.values[1, "resid_post"]
    W_enc, centre = torch.randn(N_FEATURES, D_MODEL, generator=generator), x.mean(0)
    b_enc = -((x - centre) @ W_enc.T).quantile(0.85, dim=0)  # each fires on 15 % of the tokens
    layer = layer_of(W_enc, torch.randn(N_FEATURES, D_MODEL, generator=generator), b_enc, centre=centre)
    made = dictionary_of("sae", [None, layer, None], d_model=D_MODEL, b_dec=[None, centre, None], hooks=("resid_post", "resid_post"))
    return replace(tiny_subject, dictionary=made)


@pytest.fixture(scope="session")
def tiny_vector_subject(tiny_subject: Subject) -> Subject:
    """The tiny model with six directions of the residual stream after the first layer, and six after the third."""
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(6, D_MODEL, generator=generator) for _ in range(2)]
    layers = [layer_of(one / one.norm(dim=1, keepdim=True), one) for one in drawn]
    made = dictionary_of("vector", [layers[0], None, layers[1]], d_model=D_MODEL, hooks=("resid_post", "resid_post"))
    return replace(tiny_subject, dictionary=made)
