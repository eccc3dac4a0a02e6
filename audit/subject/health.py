"""Whether a dictionary fits the model it is used on: wrong hook points and wrong files show here, not as exceptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audit.errors import SubjectError
from audit.records import LayerHealth
from audit.subject.activations import TokenActivations, content_batches
from audit.subject.dictionary import Dictionary
from audit.subject.model import LanguageModel

POOR_FVU = 0.5
POOR_DEAD = 0.5


class _Layer:
    """Sums over tokens that one layer's health is made of."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.n_tokens = 0
        self.total = torch.zeros(dictionary.d_model, dtype=torch.float64)
        self.square = 0.0
        self.error = 0.0
        self.active = torch.zeros(dictionary.n_features, dtype=torch.int64)

    def add(self, written: Tensor, predicted: Tensor, activations: Tensor) -> None:
        self.n_tokens += written.shape[0]
        self.total += written.double().sum(0).cpu()
        self.square += float(written.double().pow(2).sum())
        self.error += float((written - predicted).double().pow(2).sum())
        self.active += (activations > 0).sum(0).cpu()

    def health(self, layer: int) -> LayerHealth:
        n = max(self.n_tokens, 1)
        variance = self.square - float(self.total.pow(2).sum()) / n
        n_features = len(self.active)
        return LayerHealth(
            layer=layer,
            fvu=self.error / variance if variance > 0 else float(self.error > 0),
            l0=float(self.active.sum()) / n,
            dead_share=float((self.active == 0).sum()) / n_features,
            n_features=n_features,
        )


def measure(model: LanguageModel, dictionary: Dictionary, documents: Sequence[Sequence[int]]) -> tuple[LayerHealth, ...]:
    """FVU, L0 and dead share of every layer, on the documents' content tokens.

    FVU = Σ‖y − ŷ‖² / Σ‖y − ȳ‖² of the hook point that the dictionary predicts. On few documents the dead share is
    an upper bound.
    """
    layers = range(dictionary.n_layers)
    sums = [_Layer(dictionary) for _ in layers]
    sites = [(layer, name) for layer in layers for name in (dictionary.input_hook, dictionary.output_hook)]
    with torch.inference_mode():
        for batch in content_batches(model, documents, list(dict.fromkeys(sites))):
            active = [dictionary.encode(layer, batch.values[layer, dictionary.input_hook]) for layer in layers]
            for layer in layers:
                sums[layer].add(batch.values[layer, dictionary.output_hook], dictionary.reconstruct(layer, active), active[layer])
    return tuple(sums[layer].health(layer) for layer in layers)


def with_corpus_dead_share(health: Sequence[LayerHealth], activations: TokenActivations) -> tuple[LayerHealth, ...]:
    """The same health with the share of features that never fire on all that was observed, not only on a sample of it."""
    return tuple(replace(layer, dead_share=float((activations.counts(layer.layer) == 0).mean())) for layer in health)


def check(health: Sequence[LayerHealth]) -> tuple[str, ...]:
    """What a reader should be warned of.

    Raises:
        SubjectError: at some layer the dictionary predicts worse than a constant: it was loaded wrong or belongs to
            another model.
    """
    worst = max(health, key=lambda layer: layer.fvu)
    if not worst.fvu <= 1:
        raise SubjectError(
            "The dictionary does not fit the model",
            f"At layer {worst.layer} it explains less than a constant would (FVU {worst.fvu:.2f}).",
            "Check that it was trained on this model, and that its config.yaml names the right hook points.",
        )
    warnings = []
    for layer in health:
        if layer.fvu > POOR_FVU:
            warnings.append(f"layer {layer.layer}: {layer.fvu:.0%} of the variance is left unexplained")
        if layer.dead_share > POOR_DEAD:
            warnings.append(f"layer {layer.layer}: {layer.dead_share:.0%} of the features never fire")
    return tuple(warnings)
