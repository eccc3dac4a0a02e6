"""Whether a dictionary fits the model it is used on: wrong hook points and wrong files show here, not as exceptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import torch
from torch import Tensor

from audit.errors import SubjectError
from audit.records import HealthProblem, LayerHealth
from audit.subject.activations import DENSE_ELEMENTS, ContentBatch, content_batches
from audit.subject.architecture import NAMES
from audit.subject.corpus import tokenise
from audit.subject.dictionary import Dictionary, LayerWeights
from audit.subject.hookpoints import Site
from audit.subject.model import LanguageModel

BATCH_TOKENS = 1024
POOR_FVU = 0.5
POOR_DEAD = 0.5
L0_FACTOR = 3.0
"""Active features a token may be so many times more or fewer than the makers claim."""
UNKNOWN_SHARE = 0.1
"""A tokenizer that does not know more of the shipped text than this cannot be tested on it."""
SPELLED_OUT = 2.0
"""Nor one that takes fewer characters a token: it spells the text out, letter by letter."""
EXPLAINS = 0.8
"""An FVU that another reading of the files must reach to be named as the likely cause."""


def shipped_text() -> tuple[str, ...]:
    """Passages of ordinary English that ship with the package, a few hundred tokens in all: prose, letters, figures, code."""
    text = resources.files("audit.subject").joinpath("health_text.txt").read_text(encoding="utf-8")
    return tuple(passage.strip() for passage in text.split("\n\n") if passage.strip())


def shipped_documents(model: LanguageModel) -> tuple[tuple[int, ...], ...] | None:
    """The shipped text as token ids; None where the tokenizer does not know its words (a small vocabulary)."""
    texts = shipped_text()
    documents = tokenise(model, texts)
    unknown = model.tokenizer.unk_token_id
    n_unknown = sum(ids.count(unknown) for ids in documents) if unknown is not None else 0
    n_tokens, n_characters = sum(map(len, documents)), sum(map(len, texts))
    return None if n_unknown > UNKNOWN_SHARE * n_tokens or n_characters < SPELLED_OUT * n_tokens else documents


class _Layer:
    """Sums over tokens that one layer's health is made of."""

    def __init__(self, n_features: int, d_out: int) -> None:
        self.n_tokens = 0
        self.total = torch.zeros(d_out, dtype=torch.float64)
        self.square = 0.0
        self.error = 0.0
        self.active = torch.zeros(n_features, dtype=torch.int64)

    def add(self, written: Tensor, predicted: Tensor) -> None:
        self.total += written.double().sum(0).cpu()
        self.square += float(written.double().pow(2).sum())
        self.error += float((written - predicted).double().pow(2).sum())

    def fvu(self) -> float:
        variance = self.square - float(self.total.pow(2).sum()) / max(self.n_tokens, 1)
        return self.error / variance if variance > 0 else float(self.error > 0)


def measure(
    model: LanguageModel, dictionary: Dictionary, documents: Sequence[Sequence[int]], only: Sequence[int] | None = None
) -> tuple[LayerHealth, ...]:
    """FVU, L0 and dead share of every layer that has features, on the documents' content tokens.

    FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖² of the hook point that the dictionary predicts. On few documents the dead share is
    an upper bound. The activations of one layer are held at a time.

    Args:
        model: the model.
        dictionary: its features.
        documents: token ids of each.
        only: layers to look at; all that have features by default.

    Raises:
        SubjectError: weights, or what the model computes, hold numbers that are not finite.
    """
    layers = tuple(dictionary.present if only is None else only)
    sources = tuple(sorted({source for layer in layers for source in _sources(dictionary, layer)}))
    read: list[Site] = [(source, dictionary.input_hook) for source in sources]
    written: list[Site] = [(layer, dictionary.output_hook) for layer in layers]
    width = model.shape.width(dictionary.output_hook)
    sums = {layer: _Layer(dictionary.widths[layer], width) for layer in layers}
    at_once = max(1, min(BATCH_TOKENS, DENSE_ELEMENTS // max(dictionary.widths)))
    with torch.inference_mode():
        for batch in content_batches(model, documents, list(dict.fromkeys(read + written)), batch_tokens=at_once):
            _refuse_not_finite(batch)
            _add(dictionary, batch, sources, sums)
    return tuple(_health(dictionary, layer, sums[layer]) for layer in layers)


def _add(dictionary: Dictionary, batch: ContentBatch, sources: Sequence[int], sums: Mapping[int, _Layer]) -> None:
    """Add a batch to the sums, source layer by source layer."""
    predicted: dict[int, Tensor] = {}
    for source in sources:
        active = dictionary.encode(source, batch.values[source, dictionary.input_hook])
        if source in sums:
            sums[source].n_tokens += len(batch.token_ids)
            sums[source].active += (active != 0).sum(0).cpu()
        for layer in sums if dictionary.reconstructs else ():
            part = dictionary.contribution(source, layer, active)
            if part is not None:
                predicted[layer] = predicted[layer] + part if layer in predicted else part
    for layer, found in predicted.items():
        x = batch.values[layer, dictionary.input_hook]
        sums[layer].add(batch.values[layer, dictionary.output_hook], dictionary.completed(layer, found, x))


def _refuse_not_finite(batch: ContentBatch) -> None:
    for (layer, hook), values in batch.values.items():
        if not bool(values.isfinite().all()):
            raise SubjectError(
                "The model's activations are not finite",
                f"{hook} of layer {layer} holds infinities or NaN on ordinary text.",
                "Open the model with --dtype bfloat16 or float32; if it is, its weights are damaged.",
            )


def _sources(dictionary: Dictionary, layer: int) -> Iterator[int]:
    """Layers whose features write to a layer, and the layer itself."""
    yield layer
    if dictionary.kind == "clt":
        yield from (source for source in dictionary.present if source < layer < source + dictionary.at(source).W_dec.shape[1])


def _health(dictionary: Dictionary, layer: int, sums: _Layer) -> LayerHealth:
    return LayerHealth(
        layer=layer,
        fvu=sums.fvu() if dictionary.reconstructs else None,
        l0=float(sums.active.sum()) / max(sums.n_tokens, 1),
        dead_share=float((sums.active == 0).sum()) / len(sums.active),
        n_features=len(sums.active),
        activation=dictionary.at(layer).activation,
        claimed_l0=dictionary.at(layer).claimed_l0,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a reader should know of a dictionary's health."""

    problems: tuple[HealthProblem, ...]
    """It was loaded wrong, or belongs to another model."""
    warnings: tuple[str, ...]


def judge(health: Sequence[LayerHealth]) -> Findings:
    """Problems and warnings, worst layer first.

    A problem: a layer that is predicted worse than by a constant, or in which three times more or fewer features are active than the makers
    claim. A warning: much unexplained variance, many features that never fire.
    """
    problems, warnings = [], []
    for layer in sorted(health, key=lambda each: -(each.fvu or 0.0)):
        if layer.fvu is not None and not layer.fvu <= 1:
            text = f"layer {layer.layer}: it explains less than a constant would (FVU {layer.fvu:.2f})"
            problems.append(HealthProblem(id=f"fvu/{layer.layer}", text=text))
        if layer.claimed_l0 and not 1 / L0_FACTOR <= layer.l0 / layer.claimed_l0 <= L0_FACTOR:
            text = f"layer {layer.layer}: {layer.l0:.1f} features are active a token, where its makers claim {layer.claimed_l0:g}"
            problems.append(HealthProblem(id=f"l0/{layer.layer}", text=text))
        if layer.fvu is not None and POOR_FVU < layer.fvu <= 1:
            warnings.append(f"layer {layer.layer}: {layer.fvu:.0%} of the variance is left unexplained")
        if layer.dead_share > POOR_DEAD:
            warnings.append(f"layer {layer.layer}: {layer.dead_share:.0%} of the features never fire")
    return Findings(problems=tuple(problems), warnings=tuple(warnings))


def check(
    model: LanguageModel, dictionary: Dictionary, documents: Sequence[Sequence[int]], health: Sequence[LayerHealth], *, accept: bool = False
) -> Findings:
    """Problems and warnings, unless there is a problem that was not accepted.

    Args:
        model: the model.
        dictionary: its features.
        documents: that health was measured on.
        health: as measured.
        accept: go on in spite of problems; they are named in the report.

    Raises:
        SubjectError: there is a problem. Its cause is looked for.
    """
    found = judge(health)
    if found.problems and not accept:
        worst = int(found.problems[0].id.rpartition("/")[2])
        raise SubjectError(
            "The dictionary does not fit the model",
            f"{'; '.join(each.text for each in found.problems[:3])}. {likely_cause(model, dictionary, documents, worst)}",
            "Correct the dictionary's configuration or use the one trained on this model; to go on all the same, pass --accept-health.",
        )
    return found


def likely_cause(model: LanguageModel, dictionary: Dictionary, documents: Sequence[Sequence[int]], layer: int) -> str:
    """Another reading of the same files under which a layer is explained, in a sentence; or what is usually wrong."""
    if dictionary.reconstructs:
        tried = [(measure(model, other, documents, [layer])[0].fvu, name) for name, other in _other_readings(model, dictionary, layer)]
        fvu, name = min(((fvu, name) for fvu, name in tried if fvu is not None), default=(1.0, ""))
        if fvu <= EXPLAINS:
            return f"{name} it would explain layer {layer} (FVU {fvu:.2f}): that is the likely cause."
    return (
        "No other hook point or norm of this model explains it either: the dictionary was trained on another model or layer,"
        " or a matrix is stored transposed."
    )


def _other_readings(model: LanguageModel, dictionary: Dictionary, layer: int) -> Iterator[tuple[str, Dictionary]]:
    """The same weights read differently: other hook points, b_dec subtracted or not, square matrices the other way round."""
    shape = model.shape
    for read in NAMES:
        for written in (read,) if dictionary.kind == "sae" else ("mlp_out", "mlp_out_raw"):
            same = (read, shape.same_tensor(written)) == (dictionary.input_hook, dictionary.output_hook)
            fits = shape.width(read) == shape.width(dictionary.input_hook) and shape.width(written) == shape.width(dictionary.output_hook)
            if fits and not same and shape.same_tensor(written) == written:
                pair = f"Reading {read}" if dictionary.kind == "sae" else f"Reading {read} and writing {written}"
                yield f"{pair} (its files say {dictionary.input_hook} and {dictionary.output_hook})", _rehooked(dictionary, read, written)
    weights = dictionary.at(layer)
    if dictionary.kind == "sae":
        centred = dictionary.b_dec[layer] if weights.centre is None else None
        rule = "With b_dec subtracted before encoding" if weights.centre is None else "Without b_dec subtracted before encoding"
        yield rule, _with_layer(dictionary, layer, replace(weights, centre=centred))
    if weights.W_enc.shape[0] == weights.W_enc.shape[1]:
        turned = replace(weights.W_enc, tensor=weights.W_enc.tensor.T)
        yield "With W_enc transposed", _with_layer(dictionary, layer, replace(weights, W_enc=turned))
        if weights.W_dec.shape[1] == 1:
            turned_dec = replace(weights.W_dec, tensor=weights.W_dec.tensor.transpose(0, 2))
            yield "With W_dec transposed", _with_layer(dictionary, layer, replace(weights, W_dec=turned_dec))
            both = replace(weights, W_enc=turned, W_dec=turned_dec)
            yield "With W_enc and W_dec transposed", _with_layer(dictionary, layer, both)


def _rehooked(dictionary: Dictionary, read: str, written: str) -> Dictionary:
    return replace(dictionary, input_hook=read, output_hook=written)


def _with_layer(dictionary: Dictionary, layer: int, weights: LayerWeights) -> Dictionary:
    return replace(dictionary, layers=tuple(weights if at == layer else each for at, each in enumerate(dictionary.layers)))
