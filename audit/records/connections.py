"""What a candidate connects to downstream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from audit.records.candidates import TokenWeight
from audit.records.names import FeatureId


class ConnectionFlag(StrEnum):
    """What to keep in mind about a connection; none is removed for it."""

    DENSE = "dense"
    """The target fires on more than 10 % of tokens, so that it co-fires with anything."""
    ANTIPODAL = "antipodal"
    """Source and target read and write opposite directions: both cosines are below 0, and their product is above 0.9."""
    SMALL_V_LARGE_TWERA = "small_v_large_twera"
    """Listed for its activations alone: |V| is below a tenth of the root mean square of the source's V on the target's layer."""


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
    flags: tuple[ConnectionFlag, ...] = ()


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
    n_never_coactive: int = 0
    """Targets of the top 0.01 % by |V| that never fire together with the source: TWERA and ERA are 0 there whatever V is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamConnections:
    """Connections of every candidate, on one corpus."""

    features: tuple[FeatureConnections, ...]
    corpus_sha256: str
    n_tokens: int
