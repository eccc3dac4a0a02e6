"""Made dictionaries and activations, and a reference that reads like the definitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import sparse

from audit.records import FeatureId
from audit.records.atlas import AtlasNeighbour
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary, Kind, LayerWeights
from audit.subject.matrix import Matrix
from audit.subject.norms import Norm


@dataclass(frozen=True)
class Made:
    """A subject reduced to what an atlas reads, with dense copies to loop over."""

    subject: Subject
    activations: TokenActivations
    gains: tuple[torch.Tensor, ...]
    dense: tuple[np.ndarray, ...]

    def flow(self, source: FeatureId, target_layer: int, t: int) -> float:
        """a_i(t), over the norm denominator at the target where encoders read a normalised stream."""
        normed = self.subject.dictionary.input_hook.startswith("mlp_in")
        return float(self.dense[source.layer][t, source.index]) / (float(self.activations.sigma[t, target_layer]) if normed else 1.0)

    def brute_force(self, source: FeatureId, target: FeatureId) -> tuple[float, float, float, int]:
        """V, ERA, TWERA and support of one pair, one token and one coordinate at a time."""
        dictionary, virtual = self.subject.dictionary, 0.0
        encoder = dictionary.at(target.layer).W_enc.tensor[target.index]
        for slot, decoder in enumerate(dictionary.at(source.layer).W_dec.tensor[source.index]):
            if source.layer + slot < target.layer:
                for k in range(dictionary.d_model):
                    gain = float(self.gains[target.layer][k]) if dictionary.input_hook == "mlp_in" else 1.0
                    virtual += float(decoder[k]) * float(encoder[k]) * gain
        product = gated = target_sum = 0.0
        support, n_tokens = 0, len(self.dense[0])
        for t in range(n_tokens):
            a_i, a_j = self.flow(source, target.layer, t), float(self.dense[target.layer][t, target.index])
            product += a_j * a_i
            gated += a_i if a_j > 0 else 0.0
            target_sum += a_j
            support += bool(a_j > 0 and a_i > 0)
        return virtual, gated / n_tokens * virtual, (product / target_sum if target_sum else 0.0) * virtual, support


def make(
    kind: Kind,
    hook: str,
    *,
    seed: int,
    n_layers: int = 3,
    widths: Sequence[int] = (4,),
    n_tokens: int = 25,
    density: float = 0.5,
    dead: float = 0.0,
    d_model: int = 6,
    dtype: torch.dtype = torch.float32,
) -> Made:
    """Layers of the given widths, over and over; 0 for a layer without features. A share of features is dead."""
    torch_rng, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch_rng)

    def weights(n: int, n_out: int) -> LayerWeights:
        W_enc, W_dec = normal(n, d_model).to(dtype), normal(n, n_out, d_model).to(dtype)
        return LayerWeights(W_enc=Matrix(W_enc, "made"), b_enc=torch.zeros(n), W_dec=Matrix(W_dec, "made"))

    layers = range(n_layers)
    wide = [widths[layer % len(widths)] for layer in layers]
    dictionary = Dictionary(
        kind=kind,
        format="made",
        n_layers=n_layers,
        d_model=d_model,
        input_hook=hook,
        output_hook="mlp_out",
        sha256="0" * 64,
        path=Path("made"),
        files=(),
        layers=tuple(weights(n, n_layers - layer if kind == "clt" else 1) if n else None for layer, n in enumerate(wide)),
        b_dec=tuple(normal(d_model) for _ in layers),
    )
    alive = [rng.random(n) >= dead for n in wide]
    dense = tuple(
        (rng.gamma(1, 2, (n_tokens, n)) * (rng.random((n_tokens, n)) < density) * lives).astype(np.float32)
        for n, lives in zip(wide, alive, strict=True)
    )
    gains = tuple(normal(d_model).abs() + 0.1 for _ in layers)
    activations = TokenActivations(
        token_ids=np.arange(n_tokens, dtype=np.int32),
        document=np.zeros(n_tokens, np.int32),
        position=np.arange(n_tokens, dtype=np.int32),
        layers=tuple(sparse.csr_matrix(values) for values in dense),
        sigma=rng.uniform(0.3, 3.0, (n_tokens, n_layers + 1)).astype(np.float32),
    )
    model = SimpleNamespace(mlp_norm=lambda layer: Norm(kind="rms", eps=1e-6, gain=gains[layer]))
    info = SimpleNamespace(model_sha256="1" * 64, dictionary_sha256="2" * 64, corpus_sha256="3" * 64)
    return Made(cast(Subject, SimpleNamespace(model=model, dictionary=dictionary, info=info)), activations, gains, dense)


def strongest(made: Made, feature: FeatureId, *, top: int, support: int) -> dict[str, list[AtlasNeighbour]]:
    """The four lists of a feature, by a double loop over all others."""
    lists: dict[str, list[AtlasNeighbour]] = {}
    for side in ("targets", "sources"):
        found = []
        for other in made.subject.dictionary.features():
            if (other.layer > feature.layer) if side == "targets" else (other.layer < feature.layer):
                virtual, era, twera, n = made.brute_force(*((feature, other) if side == "targets" else (other, feature)))
                if n >= support:
                    found.append(AtlasNeighbour(feature=other, virtual_weight=virtual, era=era, twera=twera, n_coactive=n))
        for name, sign in (("positive", 1), ("negative", -1)):
            some = [each for each in found if sign * each.twera > 0]
            lists[f"{name}_{side}"] = sorted(some, key=lambda each: (-abs(each.twera), each.feature.layer, each.feature.index))[:top]
    return lists


@pytest.fixture(scope="session", name="make")
def _make() -> Callable[..., Made]:
    return make


@pytest.fixture(scope="session", name="strongest")
def _strongest() -> Callable[..., dict[str, list[AtlasNeighbour]]]:
    return strongest
