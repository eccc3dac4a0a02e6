"""Where in a model a name such as ``mlp_in`` is, and how it is read. One small table entry an architecture.

The names are ours; they say what the tensor is, on every architecture:

    resid_pre           residual stream before the layer
    resid_mid           residual stream between attention and MLP, before the MLP's norm
    mlp_in              what the MLP reads: normalised, times the norm's gain
    mlp_in_unweighted   the same without the gain
    mlp_out             what the MLP adds to the residual stream
    resid_post          residual stream after the layer

To add an architecture, add an ``Architecture`` to ``ARCHITECTURES`` under its ``config.model_type``, and a
tiny model of it to tests/audit/subject/test_hookpoints.py, where the names are checked against each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from audit.errors import SubjectError

if TYPE_CHECKING:
    from audit.subject.model import LanguageModel

Side = Literal["input", "output"]
Site = tuple[int, str]
"""(layer, name of the hook point)."""
NAMES = ("resid_pre", "resid_mid", "mlp_in", "mlp_in_unweighted", "mlp_out", "resid_post")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Module paths of one family of models, as transformers names them."""

    layers: str
    """The list of layers, from the causal model."""
    final_norm: str
    """The norm before the unembedding, from the causal model."""
    mlp_norm: str
    """The RMS norm that the MLP reads through, from a layer."""
    points: Mapping[str, tuple[str, Side]]
    """Hook point → (module from a layer, "" for the layer itself; which side of it)."""


_LLAMA = Architecture(
    layers="model.layers",
    final_norm="model.norm",
    mlp_norm="post_attention_layernorm",
    points=MappingProxyType(
        {
            "resid_pre": ("", "input"),
            "resid_mid": ("post_attention_layernorm", "input"),
            "mlp_in": ("mlp", "input"),
            "mlp_in_unweighted": ("post_attention_layernorm", "input"),
            "mlp_out": ("mlp", "output"),
            "resid_post": ("", "output"),
        }
    ),
)
ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType({"llama": _LLAMA})


def architecture_of(model_type: str) -> Architecture:
    """The table's entry for a ``config.model_type``.

    Raises:
        SubjectError: the table has none.
    """
    if model_type not in ARCHITECTURES:
        raise SubjectError(
            "Unknown architecture",
            f"The hook points of '{model_type}' models are not known; known are: {', '.join(sorted(ARCHITECTURES))}.",
            "Use a model of a known architecture, or add an entry to ARCHITECTURES in audit/subject/hookpoints.py.",
        )
    return ARCHITECTURES[model_type]


@dataclass(frozen=True, slots=True)
class HookPoint:
    """A side of a module."""

    module: nn.Module
    side: Side
    eps: float | None = None
    """If set, the tensor is divided by its root mean square, with this under the root, after it is read."""

    def value(self, tensor: Tensor) -> Tensor:
        """What the hook point's name means, from what the module passes."""
        if self.eps is None:
            return tensor
        wide = tensor.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(tensor.dtype)


def resolve(model: LanguageModel, layer: int, name: str) -> HookPoint:
    """The module and side of a hook point.

    Raises:
        SubjectError: no such layer or name.
    """
    if not 0 <= layer < model.n_layers or name not in NAMES:
        raise SubjectError(
            "No such hook point",
            f"'{name}' at layer {layer} does not exist in a model of {model.n_layers} layers.",
            f"Use a layer from 0 to {model.n_layers - 1} and one of: {', '.join(NAMES)}.",
        )
    path, side = architecture_of(model.architecture).points[name]
    return HookPoint(model.layer(layer).get_submodule(path), side, model.norm_eps if name == "mlp_in_unweighted" else None)


def first_tensor(value: Any) -> Tensor:
    """The hidden states in what a module passes: some versions of transformers wrap them in a tuple."""
    found = value[0] if isinstance(value, tuple) else value
    if not isinstance(found, Tensor):
        raise TypeError(f"a module passed {type(found).__name__} where hidden states were expected")
    return found


@contextmanager
def capture(model: LanguageModel, sites: Sequence[Site]) -> Iterator[dict[Site, Tensor]]:
    """Record hook points during the forward passes made inside the ``with``.

    Yields:
        (layer, name) → (batch, tokens, d_model), filled by each forward, overwritten by the next.
    """
    found: dict[Site, Tensor] = {}
    handles = []
    try:
        for site in sites:
            handles.append(_listen(resolve(model, *site), site, found))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _listen(point: HookPoint, site: Site, found: dict[Site, Tensor]) -> torch.utils.hooks.RemovableHandle:
    def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[site] = point.value(first_tensor(args if args else kwargs["hidden_states"]))

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found[site] = point.value(first_tensor(output))

    if point.side == "input":
        return point.module.register_forward_pre_hook(read_input, with_kwargs=True)
    return point.module.register_forward_hook(read_output)
