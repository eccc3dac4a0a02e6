"""Doses: a treatment's strength in every unit, and the unit ``kl``, whose strengths are measured and never guessed.

Matching strengths by their divergence follows Gur-Arieh et al. 2025, arXiv 2501.08319.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from audit.errors import UsageError
from audit.events import Observer, StepProgress
from audit.records import Doses, Operation, StrengthUnit, SweepPlan, Treatment
from audit.steering.divergence import STEP, divergences, everywhere, measure_kl
from audit.steering.strengths import Calibrated, Scales, activation_per_unit, strength_activation
from audit.steering.treatments import number, render
from audit.subject import Subject

__all__ = ["calibrate", "doses_of", "measure_kl", "scales_of"]

SMALLEST, LARGEST = 2.0**-6, 2.0**6
"""Multiples of the unit ``residual`` from which and up to which a calibration doubles."""
TOLERANCE = 0.005
"""Relative difference between the divergence wanted and the one found; half of the 1 % that is promised."""
ROUNDS = 32
"""Measurements of one strength: a divergence that is not found by then jumps over the wanted value."""
_LINEAR = {
    Operation.ADDITIVE: (StrengthUnit.RESIDUAL, StrengthUnit.MAX_ACTIVATION, StrengthUnit.ABSOLUTE),
    Operation.CLAMP: (StrengthUnit.ABSOLUTE, StrengthUnit.MAX_ACTIVATION),
}


def calibrate(subject: Subject, treatments: Iterable[Treatment], scales: Scales, *, observer: Observer) -> Scales:
    """Find the activation of every strength in the unit ``kl``, so that its divergence is |strength| within 1 %.

    The activation has the strength's sign. It is bracketed by doubling it from a small one, then the bracket is narrowed.

    Args:
        subject: model, dictionary and corpus.
        treatments: those of other units, and those that the scales hold already, are passed over.
        scales: what strengths are measured against.
        observer: told the strengths found; asked before every forward pass whether to stop.

    Returns:
        the scales with what was found.

    Raises:
        UsageError: a treatment is refused, or none up to ``LARGEST`` residual units has the divergence that is asked for.
        InsufficientEvidence: as ``neutral_text``.
        Interrupted: the observer asked to stop.
    """
    unknown = dict.fromkeys(everywhere(each) for each in treatments if _is_unknown(each, scales))
    searches = [_Search(each, _first(subject, each, scales), abs(each.strength)) for each in unknown]
    while wanting := [search for search in searches if search.found is None]:
        observer.notify(StepProgress(STEP, len(searches) - len(wanting), len(searches), "divergences calibrated"))
        tried = [search.tried for search in wanting]
        for search, divergence in zip(wanting, divergences(subject, tried, scales, observer=observer), strict=True):
            search.take(divergence)
    return replace(scales, kl=(*scales.kl, *(search.calibrated for search in searches)))


def doses_of(subject: Subject, treatments: Sequence[Treatment], scales: Scales, *, observer: Observer) -> tuple[Doses, ...]:
    """Each treatment's strength in every unit, with its measured divergence.

    A clamp has an activation and no norm; of what multiplies or ablates only the divergence means anything. A random direction has the
    largest activation of the feature whose norms it takes.

    Raises:
        UsageError, InsufficientEvidence, Interrupted: as ``measure_kl``.
    """
    measured = measure_kl(subject, treatments, scales, observer=observer)
    return tuple(_doses(subject, treatment, scales, divergence) for treatment, divergence in zip(treatments, measured, strict=True))


def scales_of(scales: Scales, plan: SweepPlan) -> Scales:
    """The scales with the calibration of a plan's own cells, so that it can be run without measuring again.

    Raises:
        UsageError: a cell in the unit ``kl`` does not say what activation it is.
    """
    found = dict.fromkeys(scales.kl)
    for cell in plan.cells:
        if cell.treatment is None or not _is_unknown(cell.treatment, scales):
            continue
        if cell.doses is None or cell.doses.absolute is None:
            why = f"The cell '{cell.label}' of this plan does not say which activation its strength is."
            raise UsageError("Not calibrated", why, "Plan the sweep again.")
        found[_held(cell.treatment, cell.doses.absolute)] = None
    return replace(scales, kl=tuple(found))


# --- one treatment ------------------------------------------------------------------------------------


def _is_unknown(treatment: Treatment, scales: Scales) -> bool:
    """Whether its strength is in ``kl`` and has no activation yet."""
    held = any(each.holds(treatment) and each.strength == treatment.strength for each in scales.kl)
    return treatment.unit is StrengthUnit.KL and treatment.strength != 0 and not held


def _held(treatment: Treatment, activation: float) -> Calibrated:
    return Calibrated(direction=treatment.direction, layers=treatment.layers, strength=treatment.strength, activation=activation)


def _doses(subject: Subject, treatment: Treatment, scales: Scales, divergence: float) -> Doses:
    linear = _LINEAR.get(treatment.operation, ())
    activation = strength_activation(subject.dictionary, treatment, scales) if linear else 0.0

    def inside(unit: StrengthUnit) -> float | None:
        if unit is treatment.unit and unit in linear:
            return treatment.strength
        return activation / per_unit if unit in linear and (per_unit := _per_unit(subject, treatment, scales, unit)) else None

    return Doses(
        residual=inside(StrengthUnit.RESIDUAL),
        max_activation=inside(StrengthUnit.MAX_ACTIVATION),
        absolute=inside(StrengthUnit.ABSOLUTE),
        kl=divergence,
    )


def _per_unit(subject: Subject, treatment: Treatment, scales: Scales, unit: StrengthUnit) -> float | None:
    """An activation; None where the unit has no meaning for the feature."""
    try:
        return activation_per_unit(subject.dictionary, treatment, scales, unit)
    except UsageError:
        return None


# --- the search for an activation ---------------------------------------------------------------------


def _first(subject: Subject, treatment: Treatment, scales: Scales) -> float:
    """The activation of one residual unit, with the strength's sign."""
    return math.copysign(activation_per_unit(subject.dictionary, treatment, scales, StrengthUnit.RESIDUAL), treatment.strength)


@dataclass(slots=True, eq=False)
class _Search:
    """Of the multiple of a residual unit at which a treatment has its divergence."""

    treatment: Treatment
    unit: float
    """Activation of one residual unit, with the strength's sign."""
    target: float
    """Nats."""
    at: float = SMALLEST
    """Multiple tried next, or found."""
    low: tuple[float, float] = (0.0, 0.0)
    """The largest multiple known to be too small while they were doubled, or since; and its divergence."""
    high: tuple[float, float] | None = None
    """The same of the smallest one that is too large."""
    found: float | None = None
    """Activation."""
    most: float = 0.0
    """Largest finite divergence seen."""
    rounds: int = 0

    @property
    def tried(self) -> Treatment:
        """What is to be measured."""
        return replace(self.treatment, strength=self.at * self.unit, unit=StrengthUnit.ABSOLUTE)

    @property
    def calibrated(self) -> Calibrated:
        """What was found."""
        assert self.found is not None
        return _held(self.treatment, self.found)

    def take(self, divergence: float) -> None:
        """Take what was measured, and choose what to measure next.

        Raises:
            UsageError: there is no activation to be found.
        """
        self.rounds += 1
        self.most = max(self.most, divergence if math.isfinite(divergence) else 0.0)
        if abs(divergence - self.target) <= TOLERANCE * self.target:
            self.found = self.at * self.unit
        elif divergence < self.target:
            self.low = (self.at, divergence)
        else:
            self.high = (self.at, divergence)
        if self.found is None:
            self.at = self._next()

    def _next(self) -> float:
        if self.high is None:
            if self.low[0] >= LARGEST:
                raise self._refused(f"up to {number(LARGEST)} residual units the largest divergence is {self.most:.3g} nats")
            return 2 * self.low[0]
        if self.rounds >= ROUNDS:
            why = f"it jumps from {self.low[1]:.3g} to {self.high[1]:.3g} nats at {self.high[0]:.3g} residual units"
            raise self._refused(why)
        (low, _), (high, _) = self.low, self.high
        return min(max(self._guess(), low + (high - low) / 16), high - (high - low) / 16)

    def _guess(self) -> float:
        """Where a power law through both ends has the divergence; every third time the middle, whatever the curve is."""
        assert self.high is not None
        (low, below), (high, above) = self.low, self.high
        if self.rounds % 3 == 0 or not math.isfinite(above):
            return (low + high) / 2
        power = math.log(above / below) / math.log(high / low) if below > 0 else 2.0
        return high * math.exp(math.log(self.target / above) / power)

    def _refused(self, why: str) -> UsageError:
        text = f"'{render(self.treatment)}': no strength has this divergence on neutral text; {why}."
        return UsageError("No such dose", text, "Choose another divergence, another feature or other layers.")
