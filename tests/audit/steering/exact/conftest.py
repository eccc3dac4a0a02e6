"""Plain transformers with one treatment, written from the definitions: what the steering engine is held against.

Nothing here uses the engine or its hooks. A reference is one row, one treatment, forward hooks on a copy of the model, and either the own
``generate`` of transformers or whole sequences without a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import transformers as hf_models
from torch import Tensor, nn
from transformers import PreTrainedModel

from audit.events import SilentObserver
from audit.organism.lexicon import load_lexicon
from audit.organism.tokenizer import build_tokenizer
from audit.records import Attention, FeatureId, Operation, Positions, StrengthUnit, Treatment
from audit.steering.controls import random_decoder
from audit.steering.generation import Request, Written, generate
from audit.steering.strengths import Scales, scales
from audit.subject import Dictionary, LanguageModel, Subject, observe, open_model
from audit.subject.dictionary import LayerWeights

NEW_TOKENS, N_PROMPT = 64, 48
N_LAYERS, D_MODEL, N_FEATURES, WINDOW = 4, 32, 24, 16
ADAPTED = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text")
GEMMA = ("gemma2", "gemma3_text")
DRAWN = {"mistral": 9}
"""Seeds of dictionaries, where not 5: every treatment is to give another text, and none is to pass close to a tie."""
Spans = tuple[tuple[int, int], ...]
Change = Callable[[Tensor], Tensor | None]
"""What a hook point holds → what is added to it; None: it is only read."""

# --- models ---------------------------------------------------------------------------------------

_SIZES: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
_ALTERNATE = ["sliding_attention", "full_attention"] * 2
_LOCAL = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"initializer_range": 0.22}),
    "qwen2": ("Qwen2", {"initializer_range": 0.22}),
    "qwen3": ("Qwen3", {"head_dim": 12, "initializer_range": 0.22}),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "initializer_range": 0.25}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 7,
            "sliding_window": WINDOW,
            "layer_types": _ALTERNATE,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3_text": (
        "Gemma3",
        {"head_dim": 12, "query_pre_attn_scalar": 7, "sliding_window": WINDOW, "layer_types": _LOCAL, "rope_parameters": _ROPE},
    ),
    "gpt2": ("GPT2", {}),
}
_GPT2: dict[str, Any] = {
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}


def _opened(name: str, folder: Path) -> LanguageModel:
    """A saved and opened random model; gains and biases of its norms are random too."""
    tokenizer = build_tokenizer(load_lexicon("office"))
    kind, own = _FAMILIES[name]
    config_name = {"gemma3_text": "Gemma3TextConfig"}.get(name, f"{kind}Config")
    sizes = {**(_GPT2 if name == "gpt2" else _SIZES), **own, "vocab_size": len(tokenizer)}
    torch.manual_seed(3)
    hf = getattr(hf_models, "GPT2LMHeadModel" if name == "gpt2" else f"{kind}ForCausalLM")(getattr(hf_models, config_name)(**sizes))
    for place, parameter in hf.named_parameters():
        if parameter.dim() == 1:
            gain = 1.0 if ("norm" in place or "ln_" in place) and place.endswith("weight") and name not in GEMMA else 0.0
            parameter.data = (0.1 if name == "gpt2" else 0.3) * torch.randn_like(parameter) + gain
    if name in GEMMA:  # they multiply embeddings by the root of the width; a token would be its own likeliest successor
        hf.get_input_embeddings().weight.data *= 0.2
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_model(folder)


# --- hook points of a plain model -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plain:
    """A copy of a model that transformers runs, and its hook points."""

    hf: PreTrainedModel
    family: str

    @property
    def layers(self) -> Sequence[Any]:
        hf: Any = self.hf
        found: Sequence[Any] = hf.transformer.h if self.family == "gpt2" else hf.model.layers
        return found

    def attention(self, layer: int) -> Any:
        return self.layers[layer].attn if self.family == "gpt2" else self.layers[layer].self_attn

    def place(self, layer: int, name: str) -> tuple[nn.Module, bool]:
        """A module, and whether the hook point is what it is given."""
        block, gemma = self.layers[layer], self.family in GEMMA
        heads_out = "c_proj" if self.family == "gpt2" else "o_proj"
        found: dict[str, tuple[nn.Module, bool]] = {
            "resid_pre": (block, True),
            "attn_z": (getattr(self.attention(layer), heads_out), True),
            "attn_out": (block.post_attention_layernorm if gemma else self.attention(layer), False),
            "mlp_in": (block.mlp, True),
            "mlp_out_raw": (block.mlp, False),
            "mlp_out": (block.post_feedforward_layernorm if gemma else block.mlp, False),
            "resid_post": (block, False),
        }
        return found[name]

    @contextmanager
    def on(self, layer: int, name: str, change: Change) -> Iterator[None]:
        """Read a hook point, and add to it, in every forward pass. Of several at one point the first entered comes first."""
        with ExitStack() as stack:
            if name == "resid_mid":  # what attention is added to, and what it adds
                before: list[Tensor] = []

                def remember(x: Tensor) -> None:
                    before[:] = [x]

                stack.enter_context(self.on(layer, "resid_pre", remember))
                stack.enter_context(self.on(layer, "attn_out", lambda x: change(before[0] + x)))
            else:
                module, is_input = self.place(layer, name)
                handle = module.register_forward_pre_hook(_before(change)) if is_input else module.register_forward_hook(_after(change))
                stack.callback(handle.remove)
            yield

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(tokens, vocabulary) of a sequence in one pass without a cache."""
        with torch.inference_mode():
            found: Tensor = self.hf(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        return found


def _before(change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
        added = change(args[0])
        return None if added is None else (args[0] + added, *args[1:])

    return hook


def _after(change: Change) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        added = change(x)
        if added is None:
            return None
        return (x + added, *output[1:]) if isinstance(output, tuple) else x + added

    return hook


# --- one treatment --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one row wrote."""

    token_ids: tuple[int, ...]
    logits: Tensor
    """(tokens, vocabulary): those that each token is the largest of."""

    @property
    def margin(self) -> float:
        """Smallest lead of a chosen token over the next one."""
        best = self.logits.topk(2, dim=-1).values
        return float((best[:, 0] - best[:, 1]).min())


def activation(weights: LayerWeights, x: Tensor, index: int) -> Tensor:
    """a(t), (batch, tokens), of one feature, of what its input hook point holds, (batch, tokens, d_in)."""
    centred = x if weights.centre is None else x - weights.centre
    pre = centred @ weights.W_enc.rows(slice(None)).T + weights.b_enc
    own = pre[..., index]
    if weights.k is not None:
        kept = (pre > own[..., None]).sum(-1) < weights.k
        return torch.where(kept, own.clamp_min(0), torch.zeros_like(own))
    floor = 0.0 if weights.threshold is None else float(weights.threshold[index])
    return torch.where(own > floor, own, torch.zeros_like(own))


def is_written(treatment: Treatment, position: int, n_prompt: int, first: int) -> bool:
    """Whether a treatment writes at a position of prompt and answer."""
    if position < first:
        return False
    if treatment.positions is Positions.SPANS:
        absolute = [tuple(end + n_prompt if end < 0 else end for end in span) for span in treatment.spans]
        return any(low <= position <= high for low, high in absolute)
    return treatment.positions is Positions.ALL or (treatment.positions is Positions.PROMPT) == (position < n_prompt)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """One model with one dictionary; gives what a treatment writes."""

    plain: Plain
    eager: Plain
    """The same weights; attention computes its probabilities one by one, and shows them."""
    dictionary: Dictionary
    scales: Scales
    clearances: list[float] = field(default_factory=list)
    """Distances of pre-activations from thresholds; one within rounding fires in one computation and not in the next."""

    def vectors(self, treatment: Treatment) -> dict[int, Tensor]:
        """Layer written → decoder row, as the dictionary has it, or the random one in its place."""
        source = FeatureId.parse(treatment.direction.split("@")[-1])
        rows = self.dictionary.at(source.layer).W_dec.rows([source.index])[0]
        if treatment.direction.startswith("random/"):
            rows = random_decoder(treatment.direction, rows)
        return {layer: rows[layer - source.layer] for layer in treatment.layers}

    def strength(self, treatment: Treatment) -> float:
        """The number that stands in the operation's formula."""
        source = FeatureId.parse(treatment.direction.split("@")[-1])
        if treatment.unit is StrengthUnit.RESIDUAL:
            norm = torch.cat(list(self.vectors(treatment).values())).norm()
            return treatment.strength * self.scales.residual_norm[source.layer] / float(norm)
        if treatment.unit is StrengthUnit.MAX_ACTIVATION:
            return treatment.strength * float(self.scales.max_activation[source.layer][source.index])
        return treatment.strength

    @contextmanager
    def steered(self, plain: Plain, treatment: Treatment | None, n_prompt: int, first: int) -> Iterator[None]:
        """Every forward pass inside goes on where the last one ended."""
        if treatment is None:
            yield
            return
        source = FeatureId.parse(treatment.direction.split("@")[-1])
        strength, seen = self.strength(treatment), 0
        mask = active = torch.zeros(0)

        def count(x: Tensor) -> None:
            nonlocal seen, mask
            here = range(seen, seen + x.shape[1])
            mask = torch.tensor([float(is_written(treatment, position, n_prompt, first)) for position in here])
            seen += x.shape[1]

        def read(x: Tensor) -> None:
            nonlocal active
            weights = self.dictionary.at(source.layer)
            active = activation(weights, x, source.index)
            if weights.threshold is not None:
                own = x @ weights.W_enc.rows([source.index])[0] + weights.b_enc[source.index]
                distance = (own - weights.threshold[source.index]).abs()
                self.clearances.extend(distance[0, int(seen == x.shape[1]) :].tolist())  # without BOS

        def write(vector: Tensor) -> Change:
            def change(x: Tensor) -> Tensor:
                factor = {
                    Operation.ADDITIVE: lambda: torch.full(x.shape[:2], strength),
                    Operation.MULTIPLICATIVE: lambda: (strength - 1) * active,
                    Operation.CLAMP: lambda: strength - active,
                    Operation.ABLATE: lambda: -active,
                }[treatment.operation]()
                return (mask * factor)[..., None] * vector

            return change

        with ExitStack() as stack:
            stack.enter_context(plain.on(0, "resid_pre", count))
            if treatment.operation is not Operation.ADDITIVE:
                stack.enter_context(plain.on(source.layer, self.dictionary.input_hook, read))
            for layer, vector in self.vectors(treatment).items():
                stack.enter_context(plain.on(layer, self.dictionary.output_hook, write(vector)))
            yield

    def generated(self, treatment: Treatment | None, prompt_ids: Sequence[int], first: int) -> Answer:
        """The answer that ``generate`` of transformers gives, with its own cache."""
        hf: Any = self.plain.hf
        with self.steered(self.plain, treatment, len(prompt_ids), first):
            found = hf.generate(
                torch.tensor([list(prompt_ids)]),
                attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
        return Answer(token_ids=tuple(found.sequences[0, len(prompt_ids) :].tolist()), logits=torch.cat(found.logits))

    def read_back(self, treatment: Treatment | None, prompt_ids: Sequence[int], token_ids: Sequence[int], first: int) -> Tensor:
        """Logits, (tokens, vocabulary), that each of an answer's tokens was chosen from; one pass over all of it, without a cache.

        An answer whose every token is the largest of these is the greedy answer.
        """
        ids, n_prompt = [*prompt_ids, *token_ids[:-1]], len(prompt_ids)
        if treatment is None or treatment.attention is Attention.FREE:
            with self.steered(self.plain, treatment, n_prompt, first):
                return self.plain.logits(ids)[n_prompt - 1 :]
        with self.patterns(ids), self.steered(self.eager, treatment, n_prompt, first):
            return self.eager.logits(ids)[n_prompt - 1 :]

    def recomputed(self, treatment: Treatment, prompt_ids: Sequence[int], first: int) -> Answer:
        """The greedy answer, the whole sequence computed again for every token."""
        tokens: list[int] = []
        rows: list[Tensor] = []
        for _ in range(NEW_TOKENS):
            rows.append(self.read_back(treatment, prompt_ids, [*tokens, 0], first)[-1])
            tokens.append(int(rows[-1].argmax()))
        return Answer(token_ids=tuple(tokens), logits=torch.stack(rows))

    @contextmanager
    def patterns(self, ids: Sequence[int]) -> Iterator[None]:
        """Attention patterns of the unsteered model on these tokens, in the place of those that the pass would have."""
        hf: Any = self.eager.hf
        with torch.inference_mode():
            unsteered = hf(input_ids=torch.tensor([list(ids)]), use_cache=False, output_attentions=True).attentions
        with ExitStack() as stack:
            for layer, weights in enumerate(unsteered):
                stack.enter_context(_pattern(self.eager.attention(layer), weights))
            yield


@contextmanager
def _pattern(attention: Any, weights: Tensor) -> Iterator[None]:
    """Σ_s weights(t, s) · value(s), with weights (1, heads, tokens, tokens), is what the attention's output projection reads."""
    values: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        values[:] = [output]

    def mix(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads = values[0].reshape(*values[0].shape[:2], -1, attention.head_dim).transpose(1, 2)
        heads = heads.repeat_interleave(weights.shape[1] // heads.shape[1], dim=1)
        return ((weights @ heads).transpose(1, 2).flatten(2), *args[1:])

    handles = [attention.v_proj.register_forward_hook(keep), attention.o_proj.register_forward_pre_hook(mix)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- dictionaries ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What a made dictionary is like."""

    kind: Any
    hooks: tuple[str, str]
    activation: str = "relu"
    centre: bool = False
    families: tuple[str, ...] = tuple(_FAMILIES)


FORMS: dict[str, Form] = {
    "clt": Form(kind="clt", hooks=("mlp_in", "mlp_out"), activation="jumprelu"),
    "plt": Form(kind="plt", hooks=("mlp_in", "mlp_out")),
    "plt_jumprelu": Form(kind="plt", hooks=("mlp_in", "mlp_out"), activation="jumprelu"),
    "plt_raw": Form(kind="plt", hooks=("mlp_in", "mlp_out_raw"), families=GEMMA),
    "sae_post": Form(kind="sae", hooks=("resid_post", "resid_post"), centre=True),
    "sae_topk": Form(kind="sae", hooks=("resid_post", "resid_post"), centre=True, activation="topk"),
    "sae_mid": Form(kind="sae", hooks=("resid_mid", "resid_mid"), activation="jumprelu"),
    "sae_attn": Form(kind="sae", hooks=("attn_out", "attn_out")),
    "sae_heads": Form(kind="sae", hooks=("attn_z", "attn_z"), centre=True),
    "sae_pre": Form(kind="sae", hooks=("resid_pre", "resid_pre")),
    "vector_post": Form(kind="vector", hooks=("resid_post", "resid_post")),
    "vector_pre": Form(kind="vector", hooks=("resid_pre", "resid_pre")),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One architecture."""

    name: str
    model: LanguageModel
    plain: Plain
    eager: Plain
    prompt_ids: tuple[int, ...]
    unsteered: tuple[int, ...]
    """Greedy answer."""
    subjects: dict[str, Subject] = field(default_factory=dict)
    scales: dict[str, Scales] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    answers: dict[Any, Answer] = field(default_factory=dict)

    def held(self, name: str) -> list[Tensor]:
        """(tokens, width) a layer: what a hook point holds on prompt and unsteered answer, without BOS."""
        found: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for layer in range(N_LAYERS):
                stack.enter_context(self.plain.on(layer, name, lambda x, layer=layer: found.__setitem__(layer, x[0, 1:])))  # type: ignore[misc]
            self.plain.logits([*self.prompt_ids, *self.unsteered])
        return [found[layer] for layer in range(N_LAYERS)]

    def reference(self, form: str) -> Reference:
        """Of one of the dictionaries."""
        if form not in self.references:
            subject, measured = self.subjects[form], self.scales[form]
            self.references[form] = Reference(plain=self.plain, eager=self.eager, dictionary=subject.dictionary, scales=measured)
        return self.references[form]

    def answer(self, form: str, treatment: Treatment | None) -> Answer:
        """What transformers' ``generate`` gives, computed once."""
        # To ablate is to multiply by 0.
        if treatment is not None and treatment.operation is Operation.ABLATE:
            treatment = replace(treatment, operation=Operation.MULTIPLICATIVE, unit=StrengthUnit.FACTOR)
        if (form, treatment) not in self.answers:
            self.answers[form, treatment] = self.reference(form).generated(treatment, self.prompt_ids, 1)
        return self.answers[form, treatment]

    def recomputed(self, form: str, treatment: Treatment) -> Answer:
        """The same with the whole sequence computed again for every token, once."""
        if (form, treatment) not in self.answers:
            self.answers[form, treatment] = self.reference(form).recomputed(treatment, self.prompt_ids, 1)
        return self.answers[form, treatment]


def _weights(form: Form, x: Tensor, written: Sequence[float], width: int, layer_of: Callable[..., LayerWeights]) -> LayerWeights:
    """Features that fire on four tokens of ten; firing on average, each writes half of what the residual stream holds."""
    centre = x.mean(0) if form.centre else None
    read = x if centre is None else x - centre
    W_enc = torch.randn(N_FEATURES, x.shape[1]) / read.norm(dim=1).mean()
    pre = read @ W_enc.T
    ordered, half = pre.sort(dim=0).values, int(0.6 * len(pre))
    b_enc = -(ordered[half - 1] + ordered[half]) / 2  # between two values that occur, so that rounding decides nothing
    threshold = None
    if form.activation == "jumprelu":
        threshold = 0.3 * pre.std(dim=0)
        b_enc = b_enc + threshold
    active = (pre + b_enc).clamp_min(0)
    typical = active.sum(0) / (active > 0).sum(0)
    W_dec = torch.randn(N_FEATURES, len(written), width)
    W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True) * 0.5 * torch.tensor(written)[:, None] / typical[:, None, None]
    return layer_of(W_enc, W_dec, b_enc, centre=centre, threshold=threshold, k=8 if form.activation == "topk" else None)


def _directions(norm: float, layer_of: Callable[..., LayerWeights]) -> LayerWeights:
    drawn = torch.randn(N_FEATURES, D_MODEL)
    drawn = drawn / drawn.norm(dim=1, keepdim=True)
    return layer_of(drawn, drawn * 0.1 * norm)


def _made(case: Case, form: Form, layer_of: Callable[..., LayerWeights], dictionary_of: Callable[..., Dictionary]) -> Dictionary:
    torch.manual_seed(DRAWN.get(case.name, 5))
    norms = [float(x.norm(dim=1).mean()) for x in case.held("resid_post")]
    if form.kind == "vector":
        layers: list[LayerWeights | None] = [_directions(norm, layer_of) for norm in norms]
        return dictionary_of(form.kind, layers, d_model=D_MODEL, hooks=form.hooks)
    read, outputs = case.held(form.hooks[0]), case.held(form.hooks[1])
    width = outputs[0].shape[1]
    if form.hooks[1] in ("attn_z", "mlp_out_raw"):  # not the residual stream
        norms = [2 * float(x.norm(dim=1).mean()) for x in outputs]
    layers = []
    for layer in range(N_LAYERS):
        written = norms[layer:] if form.kind == "clt" else norms[layer : layer + 1]
        layers.append(_weights(form, read[layer], written, width, layer_of))
    b_dec = [weights.centre if weights is not None and form.centre else torch.zeros(width) for weights in layers]
    return dictionary_of(form.kind, layers, d_model=D_MODEL, b_dec=b_dec, hooks=form.hooks)


# --- treatments -----------------------------------------------------------------------------------

OPERATIONS = (
    (Operation.ADDITIVE, 0.7, StrengthUnit.RESIDUAL),
    (Operation.MULTIPLICATIVE, -1.0, StrengthUnit.FACTOR),
    (Operation.MULTIPLICATIVE, 0.0, StrengthUnit.FACTOR),
    (Operation.MULTIPLICATIVE, 3.0, StrengthUnit.FACTOR),
    (Operation.CLAMP, 0.4, StrengthUnit.MAX_ACTIVATION),
    (Operation.ABLATE, 0.0, StrengthUnit.ABSOLUTE),
)
PLACES: tuple[tuple[Positions, Spans], ...] = (
    (Positions.PROMPT, ()),
    (Positions.GENERATED, ()),
    (Positions.ALL, ()),
    (Positions.SPANS, ((0, 11), (-30, -1))),
    (Positions.SPANS, ((9, 9), (N_PROMPT, N_PROMPT + 20), (N_PROMPT + 30, N_PROMPT + 33), (-7, -1))),
)


def treatments(dictionary: Dictionary, attention: Attention = Attention.FREE) -> tuple[Treatment, ...]:
    """Every operation at every kind of positions; features, source layers and written layers go round."""
    found = []
    for number, (operation, strength, unit) in enumerate(OPERATIONS):
        for place, (positions, spans) in enumerate(PLACES):
            round_ = (2 if operation is Operation.ABLATE else number) * len(PLACES) + place
            feature = FeatureId(dictionary.kind, round_ % 3, (7 * round_ + 2) % N_FEATURES)
            written = dictionary.written_layers(feature)
            found.append(
                Treatment(
                    direction=str(feature),
                    operation=operation,
                    strength=strength,
                    unit=unit,
                    layers=written[round_ % 2 :: 2] if len(written) > 2 and round_ % 4 < 2 else written,
                    positions=positions,
                    dictionary_sha256=dictionary.sha256,
                    attention=attention,
                    spans=spans,
                )
            )
    return tuple(found)


def some_treatments(dictionary: Dictionary) -> tuple[Treatment, ...]:
    """Every operation once and every kind of positions once, and other units."""
    every = treatments(dictionary)
    some = [every[5 * number + (number + 2) % 5] for number in range(len(OPERATIONS))]
    absolute = float(dictionary.at(1).b_enc.abs().mean()) + 1
    return (
        *some,
        replace(some[0], direction=f"random/4@{some[0].direction}", positions=Positions.GENERATED, spans=(), strength=-0.8),
        replace(some[0], unit=StrengthUnit.ABSOLUTE, strength=2 * absolute, positions=Positions.PROMPT, spans=()),
        replace(some[4], unit=StrengthUnit.ABSOLUTE, strength=absolute, positions=Positions.ALL, spans=()),
    )


# --- the engine -----------------------------------------------------------------------------------


def request(case: Case, cells: Sequence[Treatment | None], **other: Any) -> Request:
    """Greedy, 64 tokens, no end."""
    greedy = {"prompt_ids": case.prompt_ids, "uniforms": np.zeros((1, NEW_TOKENS)), "temperature": 0.0, "ends": (), "keep_logits": True}
    return Request(treatments=tuple(cells), **{**greedy, **other})


def written(case: Case, form: str, asked: Request, engine: Any = None) -> dict[tuple[int, int], Written]:
    """(configuration, sample) → what it wrote."""
    given = list(generate(case.subjects[form], asked, case.scales[form], observer=SilentObserver(), engine=engine))
    found = {(one.configuration, one.sample): one for one in given}
    assert len(found) == len(given) == len(asked.treatments) * len(asked.uniforms)
    return found


def same(found: Written, token_ids: Sequence[int], logits: Tensor, what: object) -> str:
    """Empty if the tokens are identical and all logits within 1e-4, else what is not."""
    assert found.logits is not None
    assert found.logits.dtype == torch.float32
    assert found.logits.shape == (len(found.token_ids), logits.shape[1])
    both = list(zip(found.token_ids, token_ids, strict=False))
    parted = next((step for step, (one, other) in enumerate(both) if one != other), len(both) - 1)
    differences = (found.logits[: parted + 1] - logits[: parted + 1]).abs().amax(1)  # behind it they are of other texts
    far = (differences > 1e-4).nonzero()
    if len(far):
        return f"{what}: logits differ by {differences.max():.2e}, first at step {int(far[0])}"
    return "" if found.token_ids == tuple(token_ids) else f"{what}: tokens differ at step {parted} of {len(token_ids)}"


def disagreements(
    case: Case, form: str, asked: Request, found: Mapping[tuple[int, int], Written], reference: Literal["generate", "one pass"]
) -> list[str]:
    """Of the first sample of every configuration of a greedy request with what transformers gives for it."""
    wrong = []
    first = case.model.first_content(asked.prompt_ids)
    for number, cell in enumerate(asked.treatments):
        one = found[number, 0]
        if reference == "generate":
            answer = case.answer(form, cell)
        else:
            logits = case.reference(form).read_back(cell, asked.prompt_ids, one.token_ids, first)
            answer = Answer(token_ids=tuple(logits.argmax(-1).tolist()), logits=logits)
        wrong.append(same(one, answer.token_ids, answer.logits, f"{case.name} {form} #{number} {_shown(cell)}"))
    return [line for line in wrong if line]


def _shown(cell: Treatment | None) -> str:
    if cell is None:
        return "unsteered"
    spans = ",".join(f"{low}..{high}" for low, high in cell.spans)
    layers = ",".join(map(str, cell.layers))
    return f"{cell.operation} {cell.strength} {cell.unit} {cell.direction} @{layers} {cell.positions}:{spans} {cell.attention}"


# --- fixtures -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cases(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_subject: Subject,
    layer_of: Callable[..., LayerWeights],
    dictionary_of: Callable[..., Dictionary],
) -> Callable[[str], Case]:
    """``cases("llama")``, made once."""
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            made[name] = _case(name, tmp_path_factory.mktemp(name), tiny_subject, layer_of, dictionary_of)
        return made[name]

    return make


def _case(name: str, folder: Path, tiny: Subject, layer_of: Callable[..., LayerWeights], dictionary_of: Callable[..., Dictionary]) -> Case:
    model = _opened(name, folder)
    plain, eager = copy.deepcopy(model.hf), copy.deepcopy(model.hf)
    eager.set_attn_implementation("eager")
    plain.generation_config.eos_token_id = None
    plain.generation_config.pad_token_id = 0
    words = [index for index in range(model.vocabulary) if index not in model.special_ids]
    drawn = torch.randperm(len(words), generator=torch.Generator().manual_seed(11))[: N_PROMPT - 1]
    prompt_ids = (1, *(words[index] for index in drawn.tolist()))
    assert model.first_content(prompt_ids) == 1
    plain_model = Plain(hf=plain, family=name)
    nothing: Any = None
    bare = Reference(plain=plain_model, eager=plain_model, dictionary=nothing, scales=nothing)
    answer = bare.generated(None, prompt_ids, 1)
    case = Case(
        name=name,
        model=model,
        plain=plain_model,
        eager=Plain(hf=eager, family=name),
        prompt_ids=prompt_ids,
        unsteered=answer.token_ids,
    )
    for form, like in FORMS.items():
        if name in like.families:
            dictionary = _made(case, like, layer_of, dictionary_of)
            subject = replace(tiny, model=model, dictionary=dictionary, corpus=tiny.corpus[:20])
            case.subjects[form] = subject
            case.scales[form] = scales(subject, observe(model, dictionary, subject.corpus))
    return case


@pytest.fixture(scope="session", params=tuple(_FAMILIES))
def case(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    return cases(request.param)


@pytest.fixture(scope="session", params=ADAPTED)
def adapted(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """An architecture that the layer-wise engine knows."""
    return cases(request.param)


@pytest.fixture(scope="session", params=("llama", "gemma3_text", "gpt2"))
def some(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Case:
    """An architecture without windows, one with, and one that transformers runs."""
    return cases(request.param)


@pytest.fixture(scope="session")
def exact() -> SimpleNamespace:
    """The parts above."""
    return SimpleNamespace(
        new_tokens=NEW_TOKENS, n_layers=N_LAYERS, window=WINDOW, forms=FORMS, treatments=treatments, some_treatments=some_treatments,
        request=request, written=written, disagreements=disagreements, activation=activation,
    )  # fmt: skip
