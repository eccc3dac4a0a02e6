"""What was audited."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth:
    """How well a dictionary fits one layer, on the corpus's content tokens."""

    layer: int
    fvu: float
    """Fraction of the variance of the predicted site that is left unexplained."""
    l0: float
    """Mean number of active features a token."""
    dead_share: float
    """Share of features that never fire on the corpus."""
    n_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectInfo:
    """What was audited: everything a reviewer needs to find the same weights."""

    name: str
    language: str
    """Which scenarios fit: ``chat`` for any chat model, ``organism/<vocabulary>`` for a bundled subject."""
    architecture: str
    model_path: str
    model_sha256: str
    dictionary_path: str
    dictionary_kind: str
    dictionary_sha256: str
    corpus_sha256: str
    n_layers: int
    d_model: int
    n_parameters: int
    dtype: str
    device: str
    health: tuple[LayerHealth, ...]
    parity_max_difference: float
    """Largest logit difference between the hooked and the plain model on a probe text; 0 when hooks change nothing."""
