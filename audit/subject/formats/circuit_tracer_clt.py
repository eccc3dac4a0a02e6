"""Cross-layer transcoders in circuit-tracer's folder format.

``W_enc_{i}.safetensors`` holds ``W_enc_i`` (F, d), ``b_enc_i`` (F), ``b_dec_i`` (d; the bias of *target* layer i) and for
JumpReLU ``threshold_i`` (F); ``W_dec_{i}.safetensors`` holds ``W_dec_i`` (F, L − i, d), whose slice j writes to layer i + j.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from audit.subject.dictionary import Dictionary
from audit.subject.formats.circuit_tracer import (
    CLT_KIND,
    TranscoderWeights,
    assemble,
    layer_files,
    read_tensors,
    refuse_rest,
    take,
    write_config,
)

ENCODER, DECODER = "W_enc_{}.safetensors", "W_dec_{}.safetensors"


def load(folder: Path) -> Dictionary:
    """Open a cross-layer transcoder.

    Raises:
        SubjectError: a file is missing or damaged, or has tensors of another shape.
    """
    encoders = layer_files(folder, ENCODER)
    layers = [_layer(folder, layer, len(encoders)) for layer in range(len(encoders))]
    return assemble(folder, "clt", layers, [*encoders, *layer_files(folder, DECODER)])


def _layer(folder: Path, layer: int, n_layers: int) -> dict[str, Tensor]:
    path = folder / ENCODER.format(layer)
    tensors = read_tensors(path)
    found = {"W_enc": take(tensors, f"W_enc_{layer}", (-1, -1), path)}
    n_features, d_model = found["W_enc"].shape
    found["b_enc"] = take(tensors, f"b_enc_{layer}", (n_features,), path)
    found["b_dec"] = take(tensors, f"b_dec_{layer}", (d_model,), path)
    if f"threshold_{layer}" in tensors:
        found["threshold"] = take(tensors, f"threshold_{layer}", (n_features,), path)
    refuse_rest(tensors, path)
    path = folder / DECODER.format(layer)
    tensors = read_tensors(path)
    found["W_dec"] = take(tensors, f"W_dec_{layer}", (n_features, n_layers - layer, d_model), path)
    refuse_rest(tensors, path)
    return found


def save(folder: Path, weights: TranscoderWeights, *, model_name: str, input_hook: str = "mlp_in", output_hook: str = "mlp_out") -> None:
    """Write a cross-layer transcoder, so that ``load`` and circuit-tracer open it.

    Args:
        folder: made if it is not there.
        weights: tensors shaped as in ``Dictionary``.
        model_name: of the model that it was trained on.
        input_hook: our name of the hook point that is read.
        output_hook: our name of the one that is predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for layer, encoder in enumerate(weights.W_enc):
        tensors = {f"W_enc_{layer}": encoder, f"b_enc_{layer}": weights.b_enc[layer], f"b_dec_{layer}": weights.b_dec[layer]}
        if weights.threshold is not None:
            tensors[f"threshold_{layer}"] = weights.threshold[layer]
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / ENCODER.format(layer))
        save_file({f"W_dec_{layer}": weights.W_dec[layer].detach().contiguous()}, folder / DECODER.format(layer))
    write_config(folder, CLT_KIND, model_name=model_name, input_hook=input_hook, output_hook=output_hook)
