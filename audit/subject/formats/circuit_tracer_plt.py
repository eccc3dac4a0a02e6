"""Per-layer transcoders in circuit-tracer's folder format.

``layer_{i}.safetensors`` holds ``W_enc`` (F, d), ``W_dec`` (F, d), ``b_enc`` (F), ``b_dec`` (d) and for JumpReLU
``activation_function.threshold`` (F).
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from audit.subject.dictionary import Dictionary
from audit.subject.formats.circuit_tracer import (
    PLT_KIND,
    TranscoderWeights,
    assemble,
    layer_files,
    read_tensors,
    refuse_rest,
    take,
    write_config,
)

LAYER, THRESHOLD = "layer_{}.safetensors", "activation_function.threshold"


def load(folder: Path) -> Dictionary:
    """Open a set of per-layer transcoders.

    Raises:
        SubjectError: a file is missing or damaged, or has tensors of another shape.
    """
    files = layer_files(folder, LAYER)
    return assemble(folder, "plt", [_layer(path) for path in files], files)


def _layer(path: Path) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    found = {"W_enc": take(tensors, "W_enc", (-1, -1), path)}
    n_features, d_model = found["W_enc"].shape
    found["b_enc"] = take(tensors, "b_enc", (n_features,), path)
    found["W_dec"] = take(tensors, "W_dec", (n_features, d_model), path)[:, None]
    found["b_dec"] = take(tensors, "b_dec", (d_model,), path)
    if THRESHOLD in tensors:
        found["threshold"] = take(tensors, THRESHOLD, (n_features,), path)
    refuse_rest(tensors, path)
    return found


def save(folder: Path, weights: TranscoderWeights, *, model_name: str, input_hook: str = "mlp_in", output_hook: str = "mlp_out") -> None:
    """Write a set of per-layer transcoders, so that ``load`` and circuit-tracer open it.

    Args:
        folder: made if it is not there.
        weights: tensors shaped as in ``Dictionary``.
        model_name: of the model that it was trained on.
        input_hook: our name of the hook point that is read.
        output_hook: our name of the one that is predicted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for layer, encoder in enumerate(weights.W_enc):
        tensors = {"W_enc": encoder, "b_enc": weights.b_enc[layer], "W_dec": weights.W_dec[layer][:, 0], "b_dec": weights.b_dec[layer]}
        if weights.threshold is not None:
            tensors[THRESHOLD] = weights.threshold[layer]
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / LAYER.format(layer))
    write_config(folder, PLT_KIND, model_name=model_name, input_hook=input_hook, output_hook=output_hook)
