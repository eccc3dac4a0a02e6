"""Training of the organism's dictionaries: transcoders that predict each layer's MLP output from its MLP input.

A cross-layer transcoder's feature writes to its own and every later layer, a per-layer transcoder's to
its own. Sparsity is BatchTopK in training (the ``k · batch`` largest activations of a batch), which becomes a
JumpReLU with one learned threshold a layer, so that the result is read a token at a time by anybody's loader.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryPlan:
    """Shape and schedule of a dictionary."""

    cross_layer: bool
    n_features: int = 128
    """A layer."""
    k: float = 5.0
    """Mean number of active features a token and layer."""
    steps: int = 1200
    batch: int = 1024
    learning_rate: float = 3e-3
    dead_after: int = 150
    """Steps without firing after which a feature helps to explain what the others leave over."""
    dead_weight: float = 1 / 16
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryWeights:
    """A trained dictionary, layer by layer, ready to be saved."""

    W_enc: tuple[Tensor, ...]
    """(n_features, d) each."""
    b_enc: tuple[Tensor, ...]
    threshold: tuple[Tensor, ...]
    """(n_features,) each: a feature is active strictly above it."""
    W_dec: tuple[Tensor, ...]
    """(n_features, n_out, d) each."""
    b_dec: tuple[Tensor, ...]


class Transcoders(nn.Module):
    """Encoders and decoders of all layers, for inputs and outputs scaled to unit variance."""

    def __init__(self, n_layers: int, d_model: int, plan: DictionaryPlan) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(plan.seed)
        self.plan = plan
        self.n_layers = n_layers
        self.W_enc = nn.ParameterList()
        self.b_enc = nn.ParameterList()
        self.W_dec = nn.ParameterList()
        self.b_dec = nn.ParameterList()
        for layer in range(n_layers):
            n_out = n_layers - layer if plan.cross_layer else 1
            encoder = torch.randn(plan.n_features, d_model, generator=generator) / math.sqrt(d_model)
            decoder = torch.randn(plan.n_features, n_out, d_model, generator=generator)
            self.W_enc.append(nn.Parameter(encoder))
            self.b_enc.append(nn.Parameter(torch.zeros(plan.n_features)))
            self.W_dec.append(nn.Parameter(decoder / decoder.flatten(1).norm(dim=1)[:, None, None]))
            self.b_dec.append(nn.Parameter(torch.zeros(d_model)))

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Activations before sparsity, (batch, n_features)."""
        return torch.relu(x @ self.W_enc[layer].T + self.b_enc[layer])

    def decode(self, active: list[Tensor]) -> list[Tensor]:
        """Predicted outputs of every layer from the activations of all, (batch, d) each."""
        predicted = [bias.expand(active[0].shape[0], -1) for bias in self.b_dec]
        for layer, activation in enumerate(active):
            written = torch.einsum("bf,fod->obd", activation, self.W_dec[layer])
            for offset, part in enumerate(written):
                predicted[layer + offset] = predicted[layer + offset] + part
        return predicted

    @torch.no_grad()
    def normalise(self) -> None:
        """Unit norm for every feature's whole decoder."""
        for decoder in self.W_dec:
            decoder /= decoder.flatten(1).norm(dim=1).clamp_min(1e-8)[:, None, None]


def train_dictionary(plan: DictionaryPlan, inputs: Tensor, outputs: Tensor, progress: Progress) -> DictionaryWeights:
    """Fit transcoders to one model's activations.

    Args:
        plan: shape and schedule.
        inputs: MLP inputs, (n_layers, n_tokens, d).
        outputs: MLP outputs, (n_layers, n_tokens, d).
        progress: called now and then with (done, total, label).
    """
    n_layers, n_tokens, d_model = inputs.shape
    x_scale = inputs.pow(2).mean((1, 2)).sqrt()
    y_mean = outputs.mean(1)
    y_scale = (outputs - y_mean[:, None]).pow(2).sum(-1).mean(1).sqrt()
    coder = Transcoders(n_layers, d_model, plan)
    optimizer = torch.optim.Adam(coder.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(plan.seed + 1)
    threshold = torch.zeros(n_layers)
    silent = [torch.zeros(plan.n_features, dtype=torch.long) for _ in range(n_layers)]
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * min(1.0, (step + 1) / 100, 3 * (plan.steps - step) / plan.steps)
        rows = torch.randint(n_tokens, (plan.batch,), generator=generator)
        x = inputs[:, rows] / x_scale[:, None, None]
        y = (outputs[:, rows] - y_mean[:, None]) / y_scale[:, None, None]
        dense = [coder.encode(layer, x[layer]) for layer in range(n_layers)]
        active = []
        for layer, activation in enumerate(dense):
            kept, lowest = batch_topk(activation, plan.k)
            active.append(kept)
            threshold[layer] = lowest if step == 0 else 0.99 * threshold[layer] + 0.01 * lowest
            silent[layer] = torch.where((kept > 0).any(0), 0, silent[layer] + 1)
        predicted = coder.decode(active)
        errors = [y[layer] - predicted[layer] for layer in range(n_layers)]
        loss = torch.stack([error.pow(2).sum(-1).mean() for error in errors]).sum()
        loss = loss + plan.dead_weight * dead_loss(coder, dense, silent, errors)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        coder.normalise()
        if (step + 1) % 50 == 0:
            fvu = " ".join(f"{error.pow(2).sum(-1).mean().item():.2f}" for error in errors)
            progress(step + 1, plan.steps, f"unexplained {fvu}")
    return rescaled(coder, threshold, x_scale, y_mean, y_scale)


def batch_topk(activation: Tensor, k: float) -> tuple[Tensor, float]:
    """Keep the ``k`` a row largest activations of the whole batch; also the smallest one kept."""
    count = max(1, int(k * activation.shape[0]))
    lowest = float(activation.detach().flatten().topk(count).values[-1])
    return torch.where(activation >= lowest, activation, 0.0) if lowest > 0 else activation, lowest


def dead_loss(coder: Transcoders, dense: list[Tensor], silent: list[Tensor], errors: list[Tensor]) -> Tensor:
    """Error of explaining the remaining error by the features that have been silent, their best few a token."""
    total = torch.zeros(())
    for layer, activation in enumerate(dense):
        dead = silent[layer] > coder.plan.dead_after
        if not dead.any():
            continue
        chosen = activation * dead
        top = chosen.topk(min(16, int(dead.sum())), dim=1)
        sparse = torch.zeros_like(chosen).scatter(1, top.indices, top.values)
        written = torch.einsum("bf,fod->obd", sparse, coder.W_dec[layer])
        for offset, part in enumerate(written):
            target = errors[layer + offset].detach()
            total = total + (target - part).pow(2).sum(-1).mean()
    return total


@torch.no_grad()
def rescaled(coder: Transcoders, threshold: Tensor, x_scale: Tensor, y_mean: Tensor, y_scale: Tensor) -> DictionaryWeights:
    """Fold the scales of inputs and outputs into the weights.

    A feature keeps its activation; its decoder to layer m takes the scale of that layer's output.
    """
    n_layers = coder.n_layers
    decoders, biases = [], []
    for layer in range(n_layers):
        n_out = coder.W_dec[layer].shape[1]
        decoders.append(coder.W_dec[layer] * y_scale[layer : layer + n_out, None][None])
        biases.append(coder.b_dec[layer] * y_scale[layer] + y_mean[layer])
    return DictionaryWeights(
        W_enc=tuple((encoder / x_scale[layer]).detach().contiguous() for layer, encoder in enumerate(coder.W_enc)),
        b_enc=tuple(bias.detach().clone() for bias in coder.b_enc),
        threshold=tuple(torch.full((coder.plan.n_features,), max(0.0, float(threshold[layer]))) for layer in range(n_layers)),
        W_dec=tuple(decoder.detach().contiguous() for decoder in decoders),
        b_dec=tuple(bias.detach() for bias in biases),
    )
