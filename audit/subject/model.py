"""A causal language model as transformers opens it, with the few things that an audit asks of it.

It draws no text and steers nothing. Files are opened locally, without remote code and without pickles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from audit.errors import SubjectError
from audit.subject.architecture import Architecture, architecture_of
from audit.subject.checkpoint import UNREADABLE, Dtype, MaxMemory, Placement, open_weights, short
from audit.subject.norms import Norm, norm_of
from audit.subject.shape import ModelShape
from audit.subject.tokens import TextCodec, ids_of, special_ids_of

_NOISE = 1e-6
"""What a direction may keep of its length under centring and still be rounding alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageModel(TextCodec):
    """A model, its tokenizer, and its measurements."""

    hf: PreTrainedModel
    """In evaluation mode, without gradients on its weights."""
    architecture: str
    """``config.model_type``, which the table of architectures knows."""
    n_layers: int
    d_model: int
    d_heads: int
    """Width of the attention heads' outputs put end to end: number of heads × head size; not always ``d_model``."""
    vocabulary: int
    """Number of logits; a tokenizer may know fewer tokens."""
    context_length: int
    """Tokens that fit."""
    device: torch.device
    """Where token ids go; layers of a model that is spread over several devices may be elsewhere."""
    dtype: torch.dtype
    _norms: dict[int, Norm] = field(default_factory=dict, repr=False)

    @property
    def shape(self) -> ModelShape:
        """Sizes that dictionaries are checked against."""
        return ModelShape(architecture=self.architecture, n_layers=self.n_layers, d_model=self.d_model, d_heads=self.d_heads)

    @property
    def n_parameters(self) -> int:
        """Weights, each counted once."""
        # Tied weights that are kept on disk are no longer one object, so they are told by name.
        tied = self.hf.all_tied_weights_keys
        return sum(weight.numel() for name, weight in self.hf.named_parameters(remove_duplicate=False) if name not in tied)

    @property
    def backbone(self) -> nn.Module:
        """The module that holds the layers and the final norm; called with ``input_ids`` it computes no logits."""
        return self.hf.get_submodule(self._family.model_types[self.architecture])

    def layer(self, index: int) -> nn.Module:
        """The decoder layer of that index."""
        return self.backbone.get_submodule(f"{self._family.layers}.{index}")

    def mlp_norm(self, layer: int) -> Norm:
        """The norm that the layer's MLP reads through; its gain is (d_model,) float32."""
        if layer not in self._norms:
            self._norms[layer] = norm_of(self.layer(layer).get_submodule(self._family.mlp_norm), self._family.norm)
        return self._norms[layer]

    @property
    def final_norm(self) -> Norm:
        """The norm that the unembedding reads through."""
        return norm_of(self.backbone.get_submodule(self._family.final_norm), self._family.norm)

    @property
    def _family(self) -> Architecture:
        return architecture_of(self.architecture)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, (batch, tokens, vocabulary), of ids (batch, tokens)."""
        logits: Tensor = self.hf(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    def unembed_direction(self, vectors: Tensor) -> Tensor:
        """W_U · norm(vector) with the final norm's gain, without its bias: (..., d_model) to (..., vocabulary) float32 on the same device.

        The vector is brought to unit root mean square first (centred, where the norm centres), so that the norm's epsilon does not depend
        on its length. A cap on the final logits is not applied.
        """
        norm = self.final_norm
        wide = vectors.to(self.device).float()
        centred = norm.centred(wide)
        rms, whole = (x.pow(2).mean(-1, keepdim=True).sqrt() for x in (centred, wide))
        unit = torch.where(rms > _NOISE * whole, centred / rms.clamp_min(1e-30), torch.zeros_like(wide)).to(self.dtype)
        hf: Any = self.hf
        with torch.inference_mode():
            logits: Tensor = hf.get_output_embeddings()(norm.to(unit.device).weighted(unit))
        return logits.float().to(vectors.device)


def open_model(path: Path, *, dtype: Dtype = "float32", device: str = "cpu", max_memory: MaxMemory | None = None) -> LanguageModel:
    """Open a transformers directory.

    Args:
        path: the directory.
        dtype: of the weights; ``auto`` is what they are stored in.
        device: ``cpu``, ``cuda``, ``cuda:<n>``, ``mps``, or ``auto`` for a model larger than one device: what does not fit stays in main
            memory or on disk and is brought to a device when it is needed.
        max_memory: with ``auto``, device → bytes that it may fill.

    Raises:
        SubjectError: there is none, it is damaged or incomplete, its architecture is not known, or there is no such device.
    """
    hf = open_weights(path, Placement(dtype=dtype, device=device, max_memory=max_memory))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except UNREADABLE as error:
        why = f"The tokenizer in '{path}' cannot be opened: {short(error)}"
        raise SubjectError("No tokenizer", why, "Copy or download the model again.") from error
    config = hf.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LanguageModel(
        hf=hf,
        tokenizer=tokenizer,
        special_ids=special_ids_of(tokenizer),
        opening_ids=ids_of(tokenizer, architecture_of(hf.config.model_type).opening),
        architecture=hf.config.model_type,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        d_heads=config.num_attention_heads * head,
        vocabulary=config.vocab_size,
        context_length=config.max_position_embeddings,
        device=_entrance(hf),
        dtype=hf.dtype,
    )


def _entrance(hf: PreTrainedModel) -> torch.device:
    """Where token ids go: the device that runs the embeddings."""
    hook = getattr(hf.get_input_embeddings(), "_hf_hook", None)
    where = getattr(hook, "execution_device", None)
    return hf.device if where is None else torch.device(where)
