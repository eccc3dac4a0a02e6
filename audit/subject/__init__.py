"""A model and a dictionary of its features, opened together as one ``Subject``.

Names are looked up on first use, so that importing this package alone does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit.subject.activations import TokenActivations, observe, passages, residual_norms
    from audit.subject.dictionary import Dictionary
    from audit.subject.loading import KeptCorpus, Opening, Subject, load_subject
    from audit.subject.model import LanguageModel, open_model

_HOMES = {
    "Dictionary": "dictionary",
    "LanguageModel": "model",
    "KeptCorpus": "loading",
    "Opening": "loading",
    "Subject": "loading",
    "TokenActivations": "activations",
    "load_subject": "loading",
    "observe": "activations",
    "open_model": "model",
    "passages": "activations",
    "residual_norms": "activations",
}
__all__ = [
    "Dictionary",
    "LanguageModel",
    "KeptCorpus",
    "Opening",
    "Subject",
    "TokenActivations",
    "load_subject",
    "observe",
    "open_model",
    "passages",
    "residual_norms",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
