"""The prediction."""

from __future__ import annotations

from dataclasses import dataclass

from audit.records.names import FeatureId, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRole:
    """Whether a downstream target fires on acting or on discussing passages."""

    target: FeatureId
    role: float | None
    """2·AUROC − 1 in [−1, 1], positive for acting; None when it fires on neither set."""
    n_acting_tokens: int
    """Acting tokens on which it fires."""
    n_discussing_tokens: int
    """Discussing tokens on which it fires."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedFeature:
    """One candidate's place in the prediction."""

    feature: FeatureId
    rank: int
    """From 1, the likeliest to act."""
    acting_score: float | None
    """In [−1, 1]; None when no supported target has a role: ranked last, and said."""
    interval: Interval | None
    """Bootstrap over corpus shards and over the scenario's contrast passages."""
    role_mass: float
    """Share of |TWERA| whose target had a role."""
    n_targets: int
    predicted_acting: bool
    """The prediction that is locked before steering."""
    own_role: float | None
    """The candidate's own role, without downstream information: the control that a downstream ranker has to beat."""
    targets: tuple[TargetRole, ...]
    """In the order of its connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """The prediction: candidates from likeliest to act to likeliest to discuss."""

    features: tuple[RankedFeature, ...]
    method: str
    top_k: int
    """Targets that the score looked at."""
    n_acting_tokens: int
    """All content tokens of the acting passages."""
    n_discussing_tokens: int
    fallback: bool = False
    """No interval lies above 0, so that the first alone was predicted, on a score above 0."""

    @property
    def basis(self) -> str:
        """Why those are predicted that are, in one sentence."""
        if self.fallback:
            return "No candidate's interval lies above zero: the first alone is predicted to act, because its score does."
        if any(each.predicted_acting for each in self.features):
            return "Predicted to act are the candidates whose interval lies above zero."
        return "Nobody is predicted to act: no candidate's interval lies above zero, and the first one's score does not either."
