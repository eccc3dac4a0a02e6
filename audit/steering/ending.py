"""Where an answer ends: tokens that end a turn, and texts of the scenario's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.errors import SubjectError
from audit.subject import LanguageModel

TURN_ENDS = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>")
"""Special tokens that end an answer in public chat templates, for models whose generation settings do not name them."""
_SLACK = 4
"""Tokens decoded beyond as many as a stop text has bytes: a tokenizer may write a character in several tokens."""


def end_ids(model: LanguageModel) -> tuple[int, ...]:
    """Tokens that end a transcript: those of the generation settings and of the tokenizer, and the end of a turn in a chat."""
    ends: list[int] = []
    for found in (getattr(model.hf.generation_config, "eos_token_id", None), model.tokenizer.eos_token_id):
        ends += [found] if isinstance(found, int) else list(found or ())
    known = model.tokenizer.get_vocab()
    ends += [known[token] for token in TURN_ENDS if token in known and known[token] in model.special_ids]
    return tuple(dict.fromkeys(ends))


def check_length(model: LanguageModel, prompt_ids: Sequence[int], max_new_tokens: int) -> None:
    """Make sure that prompt and answer fit.

    Raises:
        SubjectError: they do not.
    """
    if len(prompt_ids) + max_new_tokens > model.context_length:
        raise SubjectError(
            "The prompt is too long",
            f"It has {len(prompt_ids)} tokens, and with {max_new_tokens} generated ones it exceeds the model's {model.context_length}.",
            "Use a shorter scenario, a smaller max_new_tokens, or a model with a longer context.",
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StopTexts:
    """Texts at which an answer ends, and the model whose tokens write them."""

    model: LanguageModel
    texts: tuple[str, ...]

    def found(self, token_ids: Sequence[int]) -> str:
        """The stop text that the last token completed, or that stands in the last few; empty if none does."""
        if not self.texts:
            return ""
        n = max(len(text.encode()) for text in self.texts) + _SLACK
        near = self.model.decode(token_ids[-n:])
        if not any(text in near for text in self.texts):
            return ""
        # The last few tokens alone may read otherwise than they do behind the others: a character may begin before them.
        whole = self.model.decode(token_ids)
        return next((text for text in self.texts if text in whole), "")
