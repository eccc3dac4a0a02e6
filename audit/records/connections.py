"""What a candidate connects to downstream."""

from __future__ import annotations

from dataclasses import dataclass

from audit.records.candidates import TokenWeight
from audit.records.names import FeatureId


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A candidate's connection to one downstream feature. See definitions, "Downstream connections"."""

    target: FeatureId
    virtual_weight: float
    era: float
    twera: float
    n_coactive: int
    """Tokens on which both fire: the support."""
    target_frequency: float
    target_label: str
    target_unembeds: tuple[TokenWeight, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConnections:
    """The strongest supported targets of one candidate, by |TWERA|, largest first."""

    source: FeatureId
    targets: tuple[Connection, ...]
    n_targets: int
    """Downstream features that were considered."""
    n_unsupported: int
    """Those that co-fire with the source, but on fewer tokens than the cut-off."""
    support_cutoff: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamConnections:
    """Connections of every candidate, on one corpus."""

    features: tuple[FeatureConnections, ...]
    corpus_sha256: str
    n_tokens: int
