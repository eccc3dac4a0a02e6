"""Every record that crosses a step, in the order of the pipeline. No tensors, no torch.

Records are frozen; collections are tuples; a number that has a unit has it in its name.
``audit.ledger.identity`` turns any of them into canonical JSON and back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from audit.errors import UsageError

# --- names of things ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class FeatureId:
    """One feature of one dictionary; ``str()`` and ``parse`` round-trip: ``clt/2/81``."""

    dictionary: str
    """Kind of dictionary: ``clt``, ``plt``, ``sae`` or ``vector``."""
    layer: int
    """Layer that the feature reads, 0-based."""
    index: int
    """Row in that layer's encoder."""

    def __str__(self) -> str:
        return f"{self.dictionary}/{self.layer}/{self.index}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``clt/2/81``.

        Raises:
            UsageError: the text is not of that form.
        """
        parts = text.split("/")
        if len(parts) != 3 or not parts[0].isidentifier() or not (parts[1].isdigit() and parts[2].isdigit()):
            raise UsageError("Not a feature", f"'{text}' does not name a feature.", "Write kind/layer/index, for example clt/2/81.")
        return cls(parts[0], int(parts[1]), int(parts[2]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 95 % interval unless a record says otherwise."""

    low: float
    high: float


# --- subject --------------------------------------------------------------------------------------


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


# --- candidates -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A stretch of corpus text with a feature's activation on each token."""

    tokens: tuple[str, ...]
    """Decoded one by one; joined they read as the text."""
    activations: tuple[float, ...]
    """One a token, in the dictionary's own unit."""
    peak: int
    """Index of the largest activation in ``tokens``."""
    quantile: float | None = None
    """None for a top example; else the quantile of the activations that it was drawn from, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWeight:
    """A token and its entry in W_U · norm(decoder)."""

    token: str
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """What one sees of a feature without steering it: the things that look-alikes share."""

    feature: FeatureId
    label: str
    """Short text made of the tokens on which it fires most; ``label_source`` says from where."""
    label_source: str
    frequency: float
    """Share of corpus tokens on which it fires."""
    max_activation: float
    mean_activation: float
    """Over the tokens on which it fires."""
    decoder_norm: float
    """Over all the layers that it writes."""
    top_examples: tuple[Example, ...]
    quantile_examples: tuple[Example, ...]
    top_unembeds: tuple[TokenWeight, ...]
    bottom_unembeds: tuple[TokenWeight, ...]
    flags: tuple[str, ...] = ()
    """``dense`` (fires on more than 10 % of tokens), ``rare`` (fewer than 20 tokens), ``antipodal``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A feature that concept search found, and why."""

    descriptors: Descriptors
    fused_score: float
    """Reciprocal-rank fusion over the searches, higher is better."""
    ranks: tuple[tuple[str, int], ...]
    """(search, rank from 1) for each search that returned it: ``text``, ``contrast``, ``unembeds``."""

    @property
    def feature(self) -> FeatureId:
        """The feature itself."""
        return self.descriptors.feature


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateSet:
    """The features that will be ranked and steered, best match first."""

    concept: str
    candidates: tuple[Candidate, ...]
    n_searched: int
    """Number of features that were looked at."""
    n_excluded: int = 0
    """Of those, features left out because they fire on too few corpus tokens."""


# --- connections ----------------------------------------------------------------------------------


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


# --- ranking --------------------------------------------------------------------------------------


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
    """Bootstrap over corpus shards."""
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


# --- steering -------------------------------------------------------------------------------------


class Operation(StrEnum):
    """What a treatment does to the residual stream."""

    ADDITIVE = "additive"
    MULTIPLICATIVE = "multiplicative"


class StrengthUnit(StrEnum):
    """What a strength of 1 means."""

    RESIDUAL = "residual"
    """Norm of everything written, as a fraction of the mean residual norm at the source layer."""
    MAX_ACTIVATION = "max_activation"
    """Multiples of the feature's largest corpus activation, times its decoder."""
    FACTOR = "factor"
    """For multiplicative treatments: a ← M·a."""


class Positions(StrEnum):
    """At which tokens a treatment writes."""

    PROMPT = "prompt"
    GENERATED = "generated"
    ALL = "all"


class ArmKind(StrEnum):
    """What a cell is for."""

    NONE = "none"
    """The scenario, unsteered."""
    ZERO = "zero"
    """The scenario with a treatment of strength 0."""
    CANDIDATE = "candidate"
    RANDOM = "random"
    """A random direction of the same norm, at the same layers."""
    UNRELATED = "unrelated"
    """A learned feature that has nothing to do with the concept."""
    MOTIVE_FREE = "motive_free"
    """The scenario without its motive, steered like the candidate."""
    PROMPT_ONLY = "prompt_only"
    """Unsteered, with the state put in words."""


class PromptKind(StrEnum):
    """Which of a scenario's prompts a cell uses."""

    SCENARIO = "scenario"
    MOTIVE_FREE = "motive_free"
    PROMPT_ONLY = "prompt_only"


@dataclass(frozen=True, slots=True, kw_only=True)
class Treatment:
    """What is done to the model: complete, or refused."""

    direction: str
    """A feature (``clt/2/81``) or ``random/<seed>@<feature>``: a random direction that takes that feature's layers and norm."""
    operation: Operation
    strength: float
    unit: StrengthUnit
    layers: tuple[int, ...]
    """Layers whose MLP output is written to."""
    positions: Positions
    dictionary_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One configuration of a sweep: a treatment on one of the scenario's prompts."""

    arm: ArmKind
    prompt: PromptKind
    treatment: Treatment | None
    label: str
    """Short name for tables, unique in the sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """All cells, and how many rollouts each gets: variants × seeds, the same in every cell."""

    cells: tuple[Cell, ...]
    variants: tuple[int, ...]
    samples_per_variant: int
    seed: int
    max_new_tokens: int
    temperature: float

    @property
    def n_rollouts(self) -> int:
        """Rollouts in all."""
        return len(self.cells) * len(self.variants) * self.samples_per_variant


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was checked before the first rollout."""

    zero_dose_max_difference: float
    """Largest logit change at strength 0: must be exactly 0."""
    full_dose_min_difference: float
    """Smallest, over treatments, of the largest logit change: must be above 0."""
    firings_per_token: float
    """Hook firings divided by (tokens × layers written): must be exactly 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One sampled transcript."""

    cell: str
    """Label of its cell."""
    variant: int
    sample: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """Generated tokens, end-of-text included when it was reached."""
    text: str
    finished: bool
    """False when the token limit cut it off."""


# --- judging --------------------------------------------------------------------------------------


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
    """Largest effect of any random or unrelated control on the confirmation half."""
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


# --- audit ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditConfig:
    """What the caller asked for."""

    scenario: str
    """Name of a bundled scenario, or path of a YAML file."""
    subject: str | None = None
    """Folder of the model; None is the bundled subject."""
    dictionary: str | None = None
    corpus: str | None = None
    concept: str | None = None
    """Words to search for; None takes the scenario's own."""
    seed: int = 0
    samples: int = 6
    """Rollouts for each variant in each cell."""
    strengths: tuple[float, ...] = ()
    """Multiples of the feature's largest activation; empty takes the sweep's own."""
    passed: tuple[str, ...] = ()
    """Names of the fields that the caller gave; all others are defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditHeader:
    """One line of the ledger's table of contents."""

    audit: str
    """Short and unique: date, scenario, and six hexadecimal digits."""
    created: str
    """UTC, ISO 8601."""
    scenario: str
    scenario_version: int
    scenario_digest: str
    fingerprint: str
    """Digest of everything that decides what the audit does: a second run with the same one goes on where the first stopped."""
    n_rollouts: int
    n_planned: int | None
    """None before the sweep was planned."""
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOutcome:
    """What a finished audit hands on."""

    audit: str
    resumed: bool
    result: AuditResult
