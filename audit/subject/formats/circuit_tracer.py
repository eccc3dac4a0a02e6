"""What circuit-tracer's two folder formats share: config.yaml, names of hook points, and careful reading of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audit.errors import SubjectError
from audit.subject.dictionary import Dictionary, Kind
from audit.subject.digests import files_sha256

CLT_KIND = "cross_layer_transcoder"
PLT_KIND = "transcoder_set"
HOOKS = {
    "mlp.hook_in": "mlp_in",
    "ln2.hook_out": "mlp_in",
    "ln2.hook_normalized": "mlp_in_unweighted",
    "hook_resid_mid": "resid_mid",
    "hook_resid_pre": "resid_pre",
    "hook_resid_post": "resid_post",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_out",
}
"""Name on disk (TransformerLens's, without ``blocks.N.``) → ours. ``hook_mlp_in`` is left out: it means two different
tensors in different libraries."""


class TranscoderWeights(Protocol):
    """What can be saved: tensors a layer, shaped as in ``Dictionary``."""

    @property
    def W_enc(self) -> Sequence[Tensor]: ...  # noqa: D102
    @property
    def b_enc(self) -> Sequence[Tensor]: ...  # noqa: D102
    @property
    def threshold(self) -> Sequence[Tensor] | None: ...  # noqa: D102
    @property
    def W_dec(self) -> Sequence[Tensor]: ...  # noqa: D102
    @property
    def b_dec(self) -> Sequence[Tensor]: ...  # noqa: D102


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.yaml.

    Raises:
        SubjectError: there is none, it is not a mapping, or it asks for something that this loader does not compute.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise SubjectError(
            "Unknown dictionary format", f"'{folder}' has no config.yaml.", "Use a dictionary in circuit-tracer's folder format."
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SubjectError("The dictionary's config.yaml is broken", " ".join(str(error).split())[:200], "Copy it again.") from error
    if not isinstance(config, dict):
        raise SubjectError("The dictionary's config.yaml is broken", f"'{path}' is not a mapping.", "Copy it again.")
    _refuse_unread(config)
    return config


def _refuse_unread(config: Mapping[str, Any]) -> None:
    if config.get("activation", "relu") != "relu" or "transcoders" in config:
        raise SubjectError(
            "This dictionary cannot be read",
            "Its config.yaml has a list of 'transcoders' or an 'activation' other than relu, and would be computed wrongly.",
            "Use a folder that holds the weights themselves, with ReLU or JumpReLU activations.",
        )


def write_config(folder: Path, kind: str, *, model_name: str, input_hook: str, output_hook: str) -> None:
    """Write config.yaml; the hook points are given by our names."""
    on_disk: dict[str, str] = {}
    for name, ours in HOOKS.items():
        on_disk.setdefault(ours, name)
    config = {
        "model_kind": kind,
        "model_name": model_name,
        "feature_input_hook": on_disk[input_hook],
        "feature_output_hook": on_disk[output_hook],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def hook(config: Mapping[str, Any], key: str) -> str:
    """Our name for the hook point under a key of the configuration.

    Raises:
        SubjectError: the key is missing or the name is not known.
    """
    name = config.get(key)
    if name not in HOOKS:
        raise SubjectError(
            "Unknown hook point",
            f"The dictionary's config.yaml says {key}: {name}; a wrong hook point gives plausible wrong numbers.",
            f"Known are: {', '.join(HOOKS)}.",
        )
    return HOOKS[name]


def layer_files(folder: Path, pattern: str) -> list[Path]:
    """Files of layers 0, 1, …, in order.

    Args:
        folder: where they lie.
        pattern: such as ``layer_{}.safetensors``.

    Raises:
        SubjectError: none, or one in between is missing.
    """
    form = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    found = sorted(int(match[1]) for path in folder.iterdir() if (match := form.fullmatch(path.name)))
    n_layers = found[-1] + 1 if found else 1
    if missing := sorted(set(range(n_layers)) - set(found)):
        raise SubjectError(
            "The dictionary is incomplete", f"'{folder}' has no {pattern.format(missing[0])}.", "Copy or download the dictionary again."
        )
    return [folder / pattern.format(layer) for layer in found]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        SubjectError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SubjectError(
            "The dictionary's weights cannot be read",
            f"'{path}' is missing or damaged: {' '.join(str(error).split())[:200]}",
            "Copy or download the dictionary again and compare its checksums.",
        ) from error


def take(tensors: dict[str, Tensor], key: str, shape: tuple[int, ...], path: Path) -> Tensor:
    """Remove one tensor from a file's, as float32; −1 in the shape allows any size.

    Raises:
        SubjectError: it is missing, has another shape, or holds numbers that are not finite.
    """
    if key not in tensors:
        raise SubjectError("The dictionary is incomplete", f"'{path}' has no tensor {key}.", "Copy or download the dictionary again.")
    tensor = tensors.pop(key)
    if tensor.ndim != len(shape) or any(want not in (-1, size) for want, size in zip(shape, tensor.shape, strict=True)):
        raise SubjectError(
            "The dictionary has the wrong shape",
            f"{key} in '{path}' is {list(tensor.shape)}, expected {['any' if size < 0 else size for size in shape]}.",
            "Use the dictionary's newest revision: older ones stored some matrices transposed.",
        )
    tensor = tensor.float()
    if not bool(tensor.isfinite().all()):
        why = f"{key} in '{path}' holds numbers that are not finite."
        raise SubjectError("The dictionary is damaged", why, "Copy or download the dictionary again.")
    return tensor


def refuse_rest(tensors: dict[str, Tensor], path: Path) -> None:
    """Make sure that nothing in a file was passed over, such as a skip connection.

    Raises:
        SubjectError: something is left.
    """
    if tensors:
        raise SubjectError(
            "This dictionary cannot be read",
            f"'{path}' holds {', '.join(sorted(tensors))}, which this loader does not compute; without it the results would be wrong.",
            "Use a dictionary without it.",
        )


def assemble(folder: Path, kind: Kind, layers: Sequence[Mapping[str, Tensor]], files: Sequence[Path]) -> Dictionary:
    """The dictionary made of its layers' tensors.

    Args:
        folder: that config.yaml lies in.
        kind: of dictionary.
        layers: ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec`` and perhaps ``threshold`` of every layer.
        files: that the tensors were read from, for the digest.

    Raises:
        SubjectError: the layers differ in shape, or the configuration names hook points that are not known.
    """
    shapes = {tuple(layer["W_enc"].shape) for layer in layers}
    thresholds = tuple(layer["threshold"] for layer in layers if "threshold" in layer)
    if len(shapes) > 1 or len(thresholds) not in (0, len(layers)):
        raise SubjectError(
            "The dictionary has the wrong shape",
            f"The layers in '{folder}' differ in width, or only some have a threshold.",
            "Copy or download the dictionary again.",
        )
    config = read_config(folder)
    n_features, d_model = layers[0]["W_enc"].shape
    return Dictionary(
        kind=kind,
        n_layers=len(layers),
        n_features=n_features,
        d_model=d_model,
        input_hook=hook(config, "feature_input_hook"),
        output_hook=hook(config, "feature_output_hook"),
        sha256=files_sha256(folder, [*files, folder / "config.yaml"]),
        path=folder,
        W_enc=tuple(layer["W_enc"] for layer in layers),
        b_enc=tuple(layer["b_enc"] for layer in layers),
        threshold=thresholds or None,
        W_dec=tuple(layer["W_dec"] for layer in layers),
        b_dec=tuple(layer["b_dec"] for layer in layers),
    )
