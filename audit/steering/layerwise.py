"""A model run one layer at a time, by the modules that transformers made and with attention of our own.

``Architecture.stepwise`` says which families can be run so: token embeddings, then layers that take hidden states and rotary positions,
then the final norm and the unembedding. The layers' own code computes everything but the attention between queries, keys and values, which
an ``Attend`` is asked for: it keeps keys and values as it likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from audit.subject import LanguageModel
from audit.subject.architecture import architecture_of

_NAME = "ulterior_layerwise"
_BLOCK = 1024
"""Tokens of the vocabulary that are unembedded together."""
_BY_LENGTH = {"dynamic", "longrope"}
"""Kinds of rotary positions that change with the length of a pass."""
_FEW_ROWS = 16
"""Rows from which on blocks are faster."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer's attention weighs: softmax of ``cap·tanh(scale·<q, k>/cap)`` over the keys in its window."""

    scale: float
    cap: float | None
    """None: scores are not capped."""
    window: int | None
    """A token sees itself and the window − 1 before it; None: all before it."""


class Attend(Protocol):
    """Attention of one forward pass."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scoring: Scoring) -> Tensor:
        """What the heads put out, (rows, heads, tokens, size).

        Args:
            layer: index.
            q: (rows, heads, tokens, size), rotated.
            k: (rows, heads of keys, tokens, size), rotated; of the tokens of this pass alone.
            v: as k.
            scoring: how keys are weighed.
        """


class KeysOnly(Exception):  # noqa: N818 - it ends a pass on purpose
    """Raised by an ``Attend`` that wanted a layer's keys and values and nothing else of it."""


Rotation = dict[str, tuple[Tensor, Tensor]]
"""Kind of layer → cosines and sines of the positions of a pass; a single entry under the empty name where all layers are of one kind."""


def lacking(model: LanguageModel) -> str:
    """Why a model cannot be run layer by layer; empty if it can."""
    if not architecture_of(model.architecture).stepwise:
        return f"'{model.architecture}' models have no adapter for running them layer by layer"
    if kinds := _rope_types(model.hf.config.get_text_config()) & _BY_LENGTH:
        return f"its rotary positions ({', '.join(sorted(kinds))}) depend on how long the longest row of a batch is"
    devices = {str(device) for device in (getattr(model.hf, "hf_device_map", None) or {}).values()}
    if len(devices) > 1:
        return f"the model is spread over several devices ({', '.join(sorted(devices))})"
    return ""


def _rope_types(config: Any) -> set[str]:
    """Kinds of rotary positions; some families have one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    found = [parameters, *parameters.values()]
    return {str(each["rope_type"]) for each in found if isinstance(each, dict) and "rope_type" in each}


class Layerwise:
    """A model of a family that can be run layer by layer.

    Args:
        model: for which ``lacking`` finds nothing.
    """

    def __init__(self, model: LanguageModel) -> None:
        backbone: Any = model.backbone
        config = model.hf.config.get_text_config()
        hf: Any = model.hf
        self.model = model
        self.n_layers = model.n_layers
        self.n_key_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_size = model.d_heads // config.num_attention_heads
        self._rotary: Any = backbone.rotary_emb
        self._kinds: tuple[str, ...] = tuple(getattr(self._rotary, "layer_types", ()))
        self._kind_of = tuple(config.layer_types) if self._kinds else ("",) * model.n_layers
        self._layers: list[nn.Module] = [model.layer(layer) for layer in range(model.n_layers)]
        self._norm: Any = backbone.get_submodule(architecture_of(model.architecture).final_norm)
        self._head: Any = hf.get_output_embeddings()
        self._cap: float | None = getattr(config, "final_logit_softcapping", None)

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states, (rows, tokens, d_model), that the first layer is given for ids (rows, tokens)."""
        embedding: Any = self.model.hf.get_input_embeddings()
        hidden: Tensor = embedding(ids)
        return hidden

    def rotation(self, hidden: Tensor, positions: Tensor) -> Rotation:
        """Rotary embeddings of positions (rows or 1, tokens), in the type and on the device of hidden states."""
        if not self._kinds:
            return {"": self._rotary(hidden, positions)}
        return {kind: self._rotary(hidden, positions, kind) for kind in self._kinds}

    def run(self, layer: int, hidden: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        """Hidden states after a layer, (rows, tokens, d_model); inside ``attending``."""
        passed: Any = self._layers[layer](
            hidden,
            position_embeddings=rotation[self._kind_of[layer]],
            attention_mask=None,
            past_key_values=None,
            attend=attend,
        )
        found: Tensor = passed[0] if isinstance(passed, tuple) else passed
        return found

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits, (rows, vocabulary), of hidden states (rows, d_model) after the last layer."""
        found = self._unembedded(self._norm(hidden))
        return found if self._cap is None else torch.tanh(found / self._cap) * self._cap

    def _unembedded(self, normed: Tensor) -> Tensor:
        """What the unembedding makes of (rows, d_model).

        In float32 on a CPU, a product with a vocabulary of tens of thousands takes a fifth longer in one piece than in blocks that stay in
        the cache.
        """
        weight: Tensor = self._head.weight
        in_one = type(self._head) is not nn.Linear or self._head.bias is not None or weight.is_meta or len(normed) < _FEW_ROWS
        if in_one or weight.device.type != "cpu" or weight.dtype is not torch.float32 or len(weight) <= 2 * _BLOCK:
            whole: Tensor = self._head(normed)
            return whole
        found = normed.new_empty(len(normed), len(weight))
        for start in range(0, len(weight), _BLOCK):
            torch.mm(normed, weight[start : start + _BLOCK].t(), out=found[:, start : start + _BLOCK])
        return found

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Have the layers ask their ``Attend`` inside the ``with``."""
        AttentionInterface.register(_NAME, _attention)  # it keeps no state, so that it may stay
        configs: dict[int, Any] = {id(module.config): module.config for module in self._attentions()}
        previous = {key: config._attn_implementation for key, config in configs.items()}
        try:
            for config in configs.values():
                config._attn_implementation = _NAME
            yield
        finally:
            for key, config in configs.items():
                config._attn_implementation = previous[key]

    def _attentions(self) -> Iterator[Any]:
        path = architecture_of(self.model.architecture).reads["attn_z"].module.rpartition(".")[0]
        for layer in self._layers:
            yield layer.get_submodule(path)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *, attend: Attend, **options: Any
) -> tuple[Tensor, None]:
    """As transformers calls an implementation of attention; gives (rows, tokens, heads, size)."""
    scale = options.get("scaling")
    scoring = Scoring(
        scale=float(query.shape[-1] ** -0.5 if scale is None else scale), cap=options.get("softcap"), window=options.get("sliding_window")
    )
    return attend.attend(module.layer_idx, query, key, value, scoring).transpose(1, 2), None


