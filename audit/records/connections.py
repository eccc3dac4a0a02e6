"""What a candidate connects to downstream."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from audit.records.candidates import Example, TokenWeight
from audit.records.names import FeatureId


class ConnectionFlag(StrEnum):
    """What to keep in mind about a connection; none is removed for it."""

    DENSE = "dense"
    """The target fires on more than 10 % of tokens, so that it co-fires with anything."""
    ANTIPODAL = "antipodal"
    """Source and target read and write opposite directions: both cosines are below 0, and their product is above 0.9."""
    SMALL_V_LARGE_TWERA = "small_v_large_twera"
    """Listed for its activations alone: |V| is below a tenth of the root mean square of the source's V on the target's layer."""
    UNSUPPORTED = "unsupported"
    """Both fire together on fewer tokens than the cut-off: the weight may be an accident of few tokens."""
    NEVER_COACTIVE = "never_coactive"
    """Among the strongest 0.01 % by |V|, but both never fire together: TWERA and ERA are 0 whatever V is."""


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
    through_attention: float | None = None
    """TWERA+OV, on the tokens of ``AttentionTokens``; None where it was not computed."""
    n_reached: int | None = None
    """Of those tokens, the ones on which the target fires after the source has fired in the same document, or as it does: its support."""
    scenario_twera: float | None = None
    """TWERA over the scenario's own tokens (``ScenarioTokens``); None where it was not computed."""
    scenario_era: float | None = None
    scenario_n_coactive: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenConnection:
    """A candidate's connection to an output token: a target whose activation is 1 where the token comes next in the text, 0 elsewhere."""

    token: int
    """Its id."""
    text: str
    virtual_weight: float
    """What one unit of the source adds to the token's logit, the final norm's denominator left out."""
    era: float
    """Mean over all tokens of what the source adds to the logit where this token comes next."""
    twera: float
    """Mean of what the source adds to the logit, over the places where this token comes next."""
    n_coactive: int
    """Tokens on which the source fires and this one comes next."""
    frequency: float
    """Share of tokens behind which this one comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetDescriptors:
    """What one sees of a downstream feature: who reads a list of targets reads this."""

    feature: FeatureId
    label: str
    label_source: str
    frequency: float
    examples: tuple[Example, ...]
    """A few of its top ones."""
    top_unembeds: tuple[TokenWeight, ...]
    bottom_unembeds: tuple[TokenWeight, ...]
    motor_share: float | None
    """Mean KL divergence, in nats, of the model's next-token distribution without the feature's own output in the final residual stream
    from the one with it, on ``motor_tokens`` tokens on which it fires; None where it fires on none or its output does not reach the
    residual stream by a linear map."""
    motor_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureConnections:
    """What one candidate feeds: the strongest supported targets by |TWERA|, largest first, and what was not ranked."""

    source: FeatureId
    targets: tuple[Connection, ...]
    n_targets: int
    """Downstream features that were considered."""
    n_unsupported: int
    """Those that co-fire with the source, but on fewer tokens than the cut-off."""
    support_cutoff: int
    n_never_coactive: int = 0
    """Targets of the top 0.01 % by |V| that never fire together with the source: TWERA and ERA are 0 there whatever V is."""
    unsupported: tuple[Connection, ...] = ()
    """The strongest of the unsupported by |TWERA|; shown, never ranked."""
    never_coactive: tuple[Connection, ...] = ()
    """The strongest of those by |V|."""
    by_attention: tuple[Connection, ...] = ()
    """The strongest targets by |TWERA+OV|; empty where it was not computed."""
    by_scenario: tuple[Connection, ...] = ()
    """The strongest supported targets by TWERA over the scenario's own tokens; empty where it was not computed."""
    promoted: tuple[TokenConnection, ...] = ()
    """Output tokens with the largest V, largest first."""
    suppressed: tuple[TokenConnection, ...] = ()
    """Output tokens with the smallest V, smallest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTokens:
    """The tokens that effects through attention were followed on, and what that cost."""

    n_tokens: int
    """Content tokens."""
    n_documents: int
    operations: float
    """Multiplications and additions, beside one forward pass of each document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioTokens:
    """The scenario's own tokens: its prompts with what the unsteered model wrote to them."""

    scenario: str
    n_rollouts: int
    n_tokens: int
    """Content tokens, prompts included."""
    tokens_sha256: str
    """Of all token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamConnections:
    """Connections of every candidate, on one corpus."""

    features: tuple[FeatureConnections, ...]
    corpus_sha256: str
    n_tokens: int
    targets: tuple[TargetDescriptors, ...] = ()
    """Of every target that is listed, by layer and index."""
    attention: AttentionTokens | None = None
    scenario: ScenarioTokens | None = None
