"""What is done to the model, and what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Operation(StrEnum):
    """What a treatment does to the residual stream."""

    ADDITIVE = "additive"
    MULTIPLICATIVE = "multiplicative"


class StrengthUnit(StrEnum):
    """What a strength of 1 means."""

    RESIDUAL = "residual"
    """Norm of everything written, as a fraction of the mean norm of the residual stream after the source layer,
    which is the stream that the first vector lands in."""
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
    """A random direction beside each candidate, at the same layers and of the same norm at each."""
    UNRELATED = "unrelated"
    """A learned feature that has nothing to do with the concept, written with the norm of one candidate."""
    SIGN_FLIPPED = "sign_flipped"
    """The top candidates' directions, negated."""
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
    """Short name for tables, unique in the sweep. It gives the sweep's own strength: an unrelated feature's treatment has
    another one, at which it writes the norm that its candidate writes."""
    dose: float | None = None
    """Nominal strength: the candidate's own, and for a control that of the candidate it is matched to."""
    written_norm: float | None = None
    """Norm of everything written, in residual units of the model's own activations, before any layer norm."""


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
