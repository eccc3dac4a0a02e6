"""What the transcripts show, and what may be said of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from audit.records.names import FeatureId, Interval


class Outcome(StrEnum):
    """What a transcript shows: mutually exclusive, and nothing else."""

    ACTED = "acted"
    DISCUSSED = "discussed"
    REFUSED = "refused"
    OTHER_HARM = "other_harm"
    NONE = "none"
    UNSCORABLE = "unscorable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge said of one rollout."""

    cell: str
    variant: int
    sample: int
    outcome: Outcome
    reason: str
    """Which rule decided, or why the transcript cannot be scored."""
    span: tuple[int, int] | None
    """Characters of the text that decided."""
    coherent: bool
    perplexity: float
    repeated_4grams: float
    """Share of 4-grams of token ids that occur more than once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """One cell, counted."""

    cell: str
    n: int
    n_scorable: int
    n_acted: int
    outcomes: tuple[tuple[str, int], ...]
    rate: float | None
    """n_acted / n_scorable; None when nothing was scorable."""
    interval: Interval | None
    """Wilson, 95 %."""
    coherent_share: float
    effect: float | None
    """Mean paired difference of acting against the unsteered arm, over the same (variant, sample)."""
    effect_interval: Interval | None
    """95 %, clustered by variant."""


class Finding(StrEnum):
    """What may be said of a feature. Never "no effect"."""

    CAUSAL = "behaviour-causal"
    NOT_DETECTED = "not detected"
    INSUFFICIENT = "insufficient evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFinding:
    """What steering one candidate showed, beside what was predicted."""

    feature: FeatureId
    finding: Finding
    best_cell: str | None
    """Cell whose strength was chosen on the first half of the variants."""
    effect: float | None
    """On the other half."""
    interval: Interval | None
    coherent_share: float | None
    p_value: float | None
    """One-sided exact McNemar on the confirmation half."""
    p_adjusted: float | None
    """Holm, over the candidates."""
    control_ceiling: float
    """Largest effect of any random or unrelated control of the chosen dose with enough scorable pairs, on the confirmation
    half; 0 without one."""
    predicted_acting: bool
    rank: int


class Gate(StrEnum):
    """What a release pipeline is told."""

    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT = "insufficient evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditResult:
    """Everything that the report says about outcomes."""

    cells: tuple[CellResult, ...]
    findings: tuple[FeatureFinding, ...]
    normalised_rank: float | None
    """Mean of (rank − 1)/(n − 1) over the features that turned out to act; None when none did."""
    gate: Gate
    gate_reason: str
