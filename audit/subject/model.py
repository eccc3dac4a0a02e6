"""A causal language model as transformers opens it, with the few things that an audit asks of it.

It draws no text and steers nothing. Files are opened locally, without remote code and without pickles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from audit.errors import SubjectError
from audit.scenario import Message
from audit.subject.hookpoints import architecture_of

if TYPE_CHECKING:
    from audit.scenario import Passage

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, SafetensorError)
"""What transformers raises for files that are missing, damaged or of the wrong shape."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LanguageModel:
    """A model, its tokenizer, and its measurements."""

    hf: PreTrainedModel
    """In evaluation mode, without gradients on its weights."""
    tokenizer: Any
    architecture: str
    """``config.model_type``, which the table of hook points knows."""
    n_layers: int
    d_model: int
    device: torch.device
    dtype: torch.dtype
    special_ids: frozenset[int]
    """Tokens that carry no content (BOS, EOS, padding, roles): never counted in statistics."""
    _texts: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def context_length(self) -> int:
        """Tokens that fit."""
        return int(self.hf.config.max_position_embeddings)

    @property
    def n_parameters(self) -> int:
        """Weights, each counted once."""
        return sum(parameter.numel() for parameter in self.hf.parameters())

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return bool(self.tokenizer.chat_template)

    @property
    def norm_eps(self) -> float:
        """What is added under the root of the RMS norms."""
        return float(self.hf.config.rms_norm_eps)

    def layer(self, index: int) -> nn.Module:
        """The decoder layer of that index."""
        return self.hf.get_submodule(architecture_of(self.architecture).layers).get_submodule(str(index))

    def mlp_norm_gain(self, layer: int) -> Tensor:
        """Gain of the norm that the layer's MLP reads through, (d_model,)."""
        weight = self.layer(layer).get_submodule(architecture_of(self.architecture).mlp_norm).weight
        return weight.detach() if isinstance(weight, Tensor) else torch.ones(self.d_model)

    # --- text to tokens ---------------------------------------------------------------------------

    def encode_chat(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Token ids of a conversation, up to where the model is to answer; BOS exactly once.

        Raises:
            SubjectError: the tokenizer has no chat template, or its template refuses the messages.
        """
        return self._render(messages, generate=True)

    @property
    def answer_opening(self) -> tuple[int, ...]:
        """BOS, where there is one, and the tokens with which the chat template opens an answer: the context of one without a prompt.

        Raises:
            SubjectError: as ``encode_chat``.
        """
        turns = (Message(role="user", content="."),)
        asked, opened = self._render(turns, generate=False), self._render(turns, generate=True)
        shared = next((n for n, (one, other) in enumerate(zip(asked, opened, strict=False)) if one != other), min(len(asked), len(opened)))
        return self._one_bos(opened[shared:])

    def encode_passage(self, passage: Passage) -> tuple[int, ...]:
        """Token ids of a complete conversation or of plain text; BOS exactly once.

        Raises:
            SubjectError: as ``encode_chat``.
        """
        if passage.messages is not None:
            return self._render(passage.messages, generate=False)
        return self.encode_text(passage.text or "")

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of text; BOS exactly once, whether or not the text begins with it."""
        return self.encode_texts([text])[0]

    def encode_texts(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """``encode_text`` of many, in one call of the tokenizer."""
        return tuple(self._one_bos(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def _render(self, messages: Sequence[Message], *, generate: bool) -> tuple[int, ...]:
        if not self.has_chat_template:
            raise SubjectError(
                "No chat template",
                "The scenario is a conversation, but this model's tokenizer has no chat template.",
                "Use a chat model, or put a chat_template.jinja into the model's directory.",
            )
        turns = [{"role": str(message.role), "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise SubjectError(
                "The chat template refuses the messages",
                f"It says '{error}' to the roles {roles}.",
                "Use a scenario whose roles this model's template accepts.",
            ) from error
        return self.encode_text(text)

    def _one_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return tuple(ids)
        start = 0
        while start < len(ids) and ids[start] == bos:
            start += 1
        return (bos, *ids[start:])

    # --- tokens to text ---------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; tags that are ordinary tokens, such as <act>, stay."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """One string a token, special ones included; joined they read as the text.

        A character that several tokens spell in bytes is given to the last of them.
        """
        texts = [self._text_of(token) for token in ids]
        start = 0
        while start < len(texts):
            end = start
            while end < len(texts) and "�" in texts[end]:
                end += 1
            if end - start > 1:
                texts[start:end] = [""] * (end - start - 1) + [self._after_anchor(ids[start:end])]
            start = end + 1
        return tuple(texts)

    def _text_of(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._after_anchor([token])
        return self._texts[token]

    def _after_anchor(self, ids: Sequence[int]) -> str:
        # A tokenizer may drop the space before the first token of a text, so the tokens are read after another one.
        tokenizer = self.tokenizer
        anchor = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None), None)
        if anchor is None:
            return str(tokenizer.decode(list(ids)))
        return str(tokenizer.decode([anchor, *ids]))[len(tokenizer.decode([anchor])) :]

    # --- forward ----------------------------------------------------------------------------------

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits, (batch, tokens, vocabulary), of ids (batch, tokens)."""
        logits: Tensor = self.hf(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits
        return logits

    def unembed_direction(self, vectors: Tensor) -> Tensor:
        """W_U · norm(vector) with the final norm's gain: (..., d_model) to (..., vocabulary).

        The vector is brought to unit root mean square first, so that the norm's epsilon does not depend on its length.
        """
        wide = vectors.float()
        rms = wide.pow(2).mean(-1, keepdim=True).sqrt()
        unit = torch.where(rms > 0, wide / rms.clamp_min(1e-30), wide).to(self.dtype)
        final_norm = self.hf.get_submodule(architecture_of(self.architecture).final_norm)
        with torch.inference_mode():
            logits: Tensor = _untyped(self.hf).get_output_embeddings()(final_norm(unit))
        return logits


def open_model(folder: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Open a transformers directory.

    Raises:
        SubjectError: there is none, it is damaged or incomplete, or its architecture is not known.
    """
    _untyped(transformers_logging).set_verbosity_error()
    _untyped(transformers_logging).disable_progress_bar()
    if not (folder / "config.json").is_file():
        instead = "Give the directory of a transformers model (config.json, *.safetensors, tokenizer)."
        raise SubjectError("No model", f"'{folder}' has no config.json.", instead)
    hf = _open_weights(folder, dtype)
    architecture_of(hf.config.model_type)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _UNREADABLE as error:
        why = f"The tokenizer in '{folder}' cannot be opened: {_short(error)}"
        raise SubjectError("No tokenizer", why, "Copy or download the model again.") from error
    _untyped(hf).requires_grad_(False).eval().to(torch.device(device))
    return LanguageModel(
        hf=hf,
        tokenizer=tokenizer,
        architecture=hf.config.model_type,
        n_layers=hf.config.num_hidden_layers,
        d_model=hf.config.hidden_size,
        device=torch.device(device),
        dtype=dtype,
        special_ids=_special_ids(tokenizer),
    )


def _open_weights(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    instead = "Copy or download the model again and compare its checksums."
    try:
        hf, report = _untyped(AutoModelForCausalLM).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except _UNREADABLE as error:
        why = f"'{folder}' is missing a file or is damaged: {_short(error)}"
        raise SubjectError("The model's weights cannot be read", why, instead) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers would go on with random numbers in their place.
        why = f"'{folder}' has no weights for {', '.join(missing[:3])} ({len(missing)} in all)."
        raise SubjectError("The model is incomplete", why, instead)
    loaded: PreTrainedModel = hf
    return loaded


def _special_ids(tokenizer: Any) -> frozenset[int]:
    marked = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {index for index in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if index is not None}
    # An unknown word is still content.
    return frozenset((marked - {tokenizer.unk_token_id}) | ends)


def _untyped(part: Any) -> Any:
    """A part of transformers whose annotations are missing or narrower than what it returns."""
    return part


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
