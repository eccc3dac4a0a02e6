"""A cross-layer transcoder and activations that benchmarks are run on: random numbers, of a real dictionary's shape."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from audit.records import FeatureId
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary
from audit.subject.formats import open_dictionary
from audit.subject.shape import ModelShape

FULL = {"n_layers": 26, "n_features": 16_384, "d_model": 2_304}
QUICK = {"n_layers": 6, "n_features": 2_048, "d_model": 256}
L0 = 64
SUPPORT = 20
"""Fewest tokens on which two features must fire together."""


def encoders(folder: Path, shape: dict[str, int]) -> None:
    """Write random encoders over the zeros of the files, layer by layer."""
    generator = torch.Generator().manual_seed(0)
    for layer in range(shape["n_layers"]):
        data = torch.randn(shape["n_features"], shape["d_model"], generator=generator).mul_(shape["d_model"] ** -0.5).bfloat16()
        write(folder / f"W_enc_{layer}.safetensors", f"W_enc_{layer}", 0, data)


def decoders(folder: Path, shape: dict[str, int], features: list[FeatureId]) -> None:
    """Write random decoders of the candidates over the holes of the files."""
    for feature in features:
        generator = torch.Generator().manual_seed(feature.layer * shape["n_features"] + feature.index)
        data = torch.randn(shape["n_layers"] - feature.layer, shape["d_model"], generator=generator).bfloat16()
        write(folder / f"W_dec_{feature.layer}.safetensors", f"W_dec_{feature.layer}", feature.index * data.numel() * 2, data)


def write(path: Path, name: str, offset: int, data: torch.Tensor) -> None:
    """Put numbers into a tensor of a safetensors file, ``offset`` bytes from its beginning."""
    with path.open("r+b") as stream:
        n_header = int.from_bytes(stream.read(8), "little")
        begins = json.loads(stream.read(n_header))[name]["data_offsets"][0]
        stream.seek(8 + n_header + begins + offset)
        stream.write(data.view(torch.uint8).numpy().tobytes())


def zipf(shape: dict[str, int], n_tokens: int) -> list[sparse.csr_matrix]:
    """Random activations of every layer, (n_tokens, n_features): feature frequencies by a Zipf law, ``L0`` features a token."""
    rank = 1 + np.arange(shape["n_features"])
    low, high = 0.0, float(shape["n_features"])
    for _ in range(60):  # the factor for which frequencies, at most 1, add up to L0
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle / rank, 1).sum() < L0 else (low, middle)
    frequency, layers = np.minimum(high / rank, 1), []
    for layer in range(shape["n_layers"]):
        rng = np.random.default_rng(layer)
        n_fires = rng.binomial(n_tokens, frequency)
        rows = np.concatenate([rng.choice(n_tokens, n, replace=False) for n in n_fires]).astype(np.int32)
        columns = np.repeat(rng.permutation(shape["n_features"]).astype(np.int32), n_fires)
        values = rng.gamma(1.0, 2.0, len(rows)).astype(np.float32) + np.float32(0.1)
        layers.append(sparse.csr_matrix((values, (rows, columns)), shape=(n_tokens, shape["n_features"])))
    return layers


def stored(folder: Path, layers: list[sparse.csr_matrix]) -> None:
    """Activations as plain files."""
    for layer, matrix in enumerate(layers):
        for name in ("data", "indices", "indptr"):
            np.save(folder / f"{layer}.{name}.npy", getattr(matrix, name))


def read_activations(folder: Path, shape: dict[str, int], n_tokens: int) -> TokenActivations:
    """The first tokens of the activations that were stored, all in memory, with a norm denominator a token."""
    layers = []
    for layer in range(shape["n_layers"]):
        data, indices, indptr = (np.load(folder / f"{layer}.{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr"))
        stop = int(indptr[n_tokens])
        parts = (np.array(data[:stop]), np.array(indices[:stop]), np.array(indptr[: n_tokens + 1]))
        layers.append(sparse.csr_matrix(parts, shape=(n_tokens, shape["n_features"])))
    nothing = np.zeros(n_tokens, dtype=np.int32)
    sigma = np.ones((n_tokens, shape["n_layers"]), dtype=np.float32)
    return TokenActivations(token_ids=nothing, document=nothing, position=nothing, layers=tuple(layers), sigma=sigma)


def drawn(layers: list[sparse.csr_matrix], n: int) -> list[FeatureId]:
    """Candidates of the first half of the layers, among the features that fire on ``SUPPORT`` tokens or more."""
    rng = np.random.default_rng(1)
    firing = [np.flatnonzero(np.bincount(layer.indices, minlength=layer.shape[1]) >= SUPPORT) for layer in layers[: len(layers) // 2]]
    return [FeatureId("clt", layer, int(rng.choice(firing[layer]))) for layer in (place % len(firing) for place in range(n))]


def opened(folder: Path, shape: dict[str, int], n_features: int) -> Dictionary:
    """The dictionary, or its first layers' features up to ``n_features``: as many features in each layer."""
    model = ModelShape(architecture="gemma2", n_layers=shape["n_layers"], d_model=shape["d_model"], d_heads=shape["d_model"])
    whole = open_dictionary(folder, model)
    width = n_features // shape["n_layers"]
    layers = tuple(
        None if layer is None else replace(layer, W_enc=replace(layer.W_enc, tensor=layer.W_enc.tensor[:width]), b_enc=layer.b_enc[:width])
        for layer in whole.layers
    )
    return whole if width == shape["n_features"] else replace(whole, layers=layers)


def cut(activations: TokenActivations, width: int) -> TokenActivations:
    """Those of the first features of each layer."""
    if width == activations.layers[0].shape[1]:
        return activations
    return replace(activations, layers=tuple(layer[:, :width] for layer in activations.layers))
