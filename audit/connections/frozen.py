"""The frozen forward pass: what a change of the residual stream becomes when only the values that attention carries may change.

Attention patterns and norm denominators are those of the real pass on the document, what an MLP puts out does not change. What is left is
linear: a change of the stream stays in it, and each layer's attention adds to it

    after( W_O · pattern · W_V · before(change) )

with the norm before attention, and the norm after it where the family has one (Gemma), divided by what they divided by in the real pass. A
layer norm's centring is linear and kept; biases are constant and drop out.

No family is written out: the layer's own attention module is run on the change, in float32 and without its biases, and transformers'
dispatch of attention puts the pattern of the real pass in the place of the one that the module would compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface

from audit.errors import SubjectError
from audit.subject.architecture import architecture_of
from audit.subject.hookpoints import first_tensor
from audit.subject.model import LanguageModel
from audit.subject.norms import Kind, Norm, norm_of

FROZEN = "ulterior_frozen"
"""Name under which transformers finds the attention with a given pattern."""
Attend = Callable[[Tensor], Tensor]
"""A change of the stream before a layer, (n, tokens, d_model) float32 → what the layer's attention adds to it, of the same shape."""
Visit = Callable[[int, Attend], None]
"""Called with a layer and its attention, which is only valid during the call."""


def _with_pattern(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **options: Any) -> tuple[Tensor, None]:
    """Attention as transformers calls it, with the pattern (1, heads, tokens, tokens) that the option ``frozen_pattern`` gives.

    Values are (n, key heads, tokens, size), of which as many query heads in a row share each; returns (n, tokens, heads, size).
    """
    grouped = options["frozen_pattern"][0].to(value.dtype).unflatten(0, (value.shape[1], -1))
    # Named so that the pattern is never repeated for the n changes, nor the values for the heads that share them.
    carried = torch.einsum("kgqp,nkpe->nqkge", grouped, value)
    return carried.flatten(2, 3), None


@dataclass(slots=True, eq=False)
class FrozenNorm:
    """A norm that divides by what it divided by in the real pass."""

    module: nn.Module
    norm: Norm
    denominator: Tensor | None = None
    """(1, tokens)"""

    def __call__(self, change: Tensor) -> Tensor:
        """What the norm puts out for a change, (n, tokens, d_model)."""
        assert self.denominator is not None, "the norm has not run"
        return self.norm.centred(change) * self.norm.gain / self.denominator[..., None]

    def listen(self) -> RemovableHandle:
        """Remember the denominators whenever the norm runs."""

        def record(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.denominator = self.norm.denominator(first_tensor(args))

        return self.module.register_forward_pre_hook(record)


@dataclass(slots=True, eq=False)
class FrozenAttention:
    """What one layer's attention adds to the stream for a change of it."""

    module: nn.Module
    before: FrozenNorm | None
    after: FrozenNorm | None
    call: tuple[tuple[Any, ...], dict[str, Any]] = field(default=((), {}))
    """What the module was called with in the real pass."""
    pattern: Tensor | None = None
    """(1, heads, tokens, tokens)"""

    def __call__(self, change: Tensor) -> Tensor:
        """See ``Attend``."""
        args, kwargs = self.call
        read = change.to(self._device)
        read = read if self.before is None else self.before(read)
        kwargs = {**kwargs, "frozen_pattern": self.pattern}
        args, kwargs = ((read, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": read})
        with dispatched([self.module], FROZEN):
            added = first_tensor(functional_call(self.module, self._weights(), args, kwargs))
        return (added if self.after is None else self.after(added)).to(change.device)

    def listen(self) -> Iterator[RemovableHandle]:
        """Remember the call, the pattern and the denominators whenever the layer runs."""

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if "frozen_pattern" not in kwargs:
                self.call, self.pattern = (args, kwargs), output[1]

        yield self.module.register_forward_hook(record, with_kwargs=True)
        yield from (norm.listen() for norm in (self.before, self.after) if norm is not None)

    def release(self) -> None:
        """Drop what was remembered."""
        self.call, self.pattern = ((), {}), None

    @property
    def _device(self) -> torch.device:
        return next(self.module.parameters()).device

    def _weights(self) -> dict[str, Tensor]:
        """The weights that the linear map has otherwise than the module: in float32, and no biases."""
        found = {}
        for name, weight in self.module.named_parameters():
            if name.rpartition(".")[2] == "bias":
                found[name] = torch.zeros_like(weight, dtype=torch.float32)
            elif weight.dtype != torch.float32:
                found[name] = weight.float()
        return found


class FrozenModel:
    """A model whose forward passes on documents are frozen, one after the other.

    Args:
        model: the model; it is left as it was after every pass.

    Raises:
        SubjectError: its weights are not in memory, or its layers are not built as the frozen pass takes them to be.
    """

    def __init__(self, model: LanguageModel) -> None:
        if any(weight.is_meta for weight in model.backbone.parameters()):
            raise SubjectError(
                "Attention cannot be followed here",
                "Some of the model's weights are kept outside the device that computes with them.",
                "Use a device that holds the whole model, such as cpu, or leave the effects through attention out.",
            )
        self._model = model
        self._layers = [_attention_of(model, layer) for layer in range(model.n_layers)]

    @property
    def n_weights(self) -> tuple[int, ...]:
        """Weights of each layer's attention: a change of n tokens costs 2·n times as many operations, and those of the pattern."""
        return tuple(sum(weight.numel() for weight in each.module.parameters()) for each in self._layers)

    def run(self, document: Sequence[int], visit: Visit) -> None:
        """Run the real model over one document; after each layer, ``visit`` gets that layer's attention, frozen.

        Patterns are held for one layer at a time: heads × tokens² numbers.

        Args:
            document: its token ids, BOS included.
            visit: called layer by layer, in order.
        """
        handles: list[RemovableHandle] = []
        ids = torch.tensor([list(document)], device=self._model.device)
        try:
            for index, attention in enumerate(self._layers):
                handles += attention.listen()
                handles.append(_after(self._model.layer(index), index, attention, visit))
            # Only eager attention gives its pattern away, so the real pass is made with it.
            with torch.inference_mode(), dispatched([self._model.backbone, *(each.module for each in self._layers)], "eager"):
                self._model.backbone(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
            for attention in self._layers:
                attention.release()


def _after(layer: nn.Module, index: int, attention: FrozenAttention, visit: Visit) -> RemovableHandle:
    def call(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        visit(index, attention)
        attention.release()

    return layer.register_forward_hook(call)


@contextmanager
def dispatched(modules: Sequence[nn.Module], name: str) -> Iterator[None]:
    """Have modules of one model use an implementation of attention inside the ``with``, by its name in transformers."""
    AttentionInterface.register(FROZEN, _with_pattern)  # it keeps no state, so that it may stay
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    previous = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = previous[key]


def _attention_of(model: LanguageModel, index: int) -> FrozenAttention:
    """The attention of a layer and the norms around it, from what the table of architectures says of the others."""
    family = architecture_of(model.architecture)
    layer = model.layer(index)
    path = family.reads["attn_z"].module.rpartition(".")[0]
    added = family.reads["attn_out"].module
    known = {family.mlp_norm, added, family.reads["mlp_out"].module}
    before = [name for name, child in layer.named_children() if name not in known and _is_norm(child)]
    if len(before) > 1:
        raise SubjectError(
            "Attention cannot be followed here",
            f"Layer {index} of a '{model.architecture}' model has {len(before)} norms besides those known: {', '.join(before)}.",
            "Use a model of another architecture, or leave the effects through attention out.",
        )
    return FrozenAttention(
        module=layer.get_submodule(path),
        before=_norm(layer, before[0], family.norm) if before else None,
        after=None if added == path else _norm(layer, added, family.norm),
    )


def _norm(layer: nn.Module, name: str, kind: Kind) -> FrozenNorm:
    module = layer.get_submodule(name)
    return FrozenNorm(module, norm_of(module, kind))


def _is_norm(module: nn.Module) -> bool:
    """Whether a module has a vector for a weight, as only norms do."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1
