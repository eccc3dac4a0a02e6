"""A dictionary of features: per-layer or cross-layer transcoders, in one form whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from audit.errors import UsageError
from audit.records import FeatureId

Kind = Literal["clt", "plt"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dictionary:
    """Encoders and decoders of every layer.

    A feature of layer l reads ``input_hook`` there. A cross-layer transcoder's (``clt``) writes to ``output_hook`` of
    layers l … L − 1, a per-layer transcoder's (``plt``) to that of layer l.
    """

    kind: Kind
    n_layers: int
    n_features: int
    """A layer."""
    d_model: int
    input_hook: str
    """A name of ``audit.subject.hookpoints``."""
    output_hook: str
    sha256: str
    path: Path
    W_enc: tuple[Tensor, ...]
    """(n_features, d_model) a layer."""
    b_enc: tuple[Tensor, ...]
    """(n_features,) a layer."""
    threshold: tuple[Tensor, ...] | None
    """(n_features,) a layer: active strictly above it (JumpReLU). None is ReLU."""
    W_dec: tuple[Tensor, ...]
    """(n_features, n_out, d_model) a layer; slice m of layer l writes to layer l + m."""
    b_dec: tuple[Tensor, ...]
    """(d_model,) a layer, added to that layer's reconstruction."""

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Activations, (..., n_features), of what the input hook point of a layer holds, (..., d_model)."""
        pre = torch.nn.functional.linear(x.to(self.W_enc[layer].dtype), self.W_enc[layer], self.b_enc[layer])
        if self.threshold is None:
            return torch.relu(pre)
        return pre * (pre > self.threshold[layer])

    def decoder(self, feature: FeatureId) -> Tensor:
        """What a feature of activation 1 writes, (n_out, d_model), to ``written_layers`` in order."""
        self.check(feature)
        return self.W_dec[feature.layer][feature.index]

    def written_layers(self, feature: FeatureId) -> tuple[int, ...]:
        """Layers whose output hook point a feature writes to."""
        self.check(feature)
        return tuple(range(feature.layer, feature.layer + self.W_dec[feature.layer].shape[1]))

    def reconstruct(self, layer: int, activations: Sequence[Tensor]) -> Tensor:
        """The prediction for a layer's output hook point, (..., d_model).

        Args:
            layer: the layer predicted.
            activations: (..., n_features) of layers 0, 1, …; those above ``layer`` are not looked at.
        """
        total = self.b_dec[layer]
        for source in range(layer + 1):
            if layer - source < self.W_dec[source].shape[1]:
                total = total + activations[source] @ self.W_dec[source][:, layer - source]
        return total

    def features(self) -> Iterator[FeatureId]:
        """Every feature, by layer and index."""
        for layer in range(self.n_layers):
            for index in range(self.n_features):
                yield FeatureId(self.kind, layer, index)

    def check(self, feature: FeatureId) -> None:
        """Make sure that the feature is one of this dictionary's.

        Raises:
            UsageError: it is not.
        """
        if feature.dictionary != self.kind or feature.layer >= self.n_layers or feature.index >= self.n_features:
            raise UsageError(
                "No such feature",
                f"This dictionary has no {feature}.",
                f"Name one from {self.kind}/0/0 to {self.kind}/{self.n_layers - 1}/{self.n_features - 1}.",
            )
