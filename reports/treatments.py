"""Treatments in words, from the record alone: a report is made without a model, so without the code that steers."""

from __future__ import annotations

from itertools import groupby

from audit.records import Attention, Operation, StrengthUnit, Treatment
from reports.wording import unit_short

VERBS = {Operation.ADDITIVE: "add", Operation.MULTIPLICATIVE: "multiply", Operation.CLAMP: "clamp", Operation.ABLATE: "ablate"}
_AXES = {
    Operation.ADDITIVE: "strength, {}",
    Operation.MULTIPLICATIVE: "factor, {}",
    Operation.CLAMP: "held at, {}",
    Operation.ABLATE: "held at 0",
}


def form(treatment: Treatment) -> str:
    """The treatment in its string form, as it is written on the command line: ``add 0.5 residual clt/2/81 @2-4 all``."""
    dose = () if treatment.operation is Operation.ABLATE else (_number(treatment.strength), treatment.unit.value)
    return " ".join((VERBS[treatment.operation], *dose, treatment.direction, *_place(treatment)))


def kind(treatment: Treatment) -> str:
    """What treatments have in common that differ by strength and direction alone: ``add residual @2-4 all``."""
    unit = () if treatment.operation is Operation.ABLATE else (treatment.unit.value,)
    return " ".join((VERBS[treatment.operation], *unit, *_place(treatment)))


def axis(operation: Operation, unit: StrengthUnit) -> str:
    """What an axis of such strengths shows."""
    return _AXES[operation].format(unit_short(unit))


def _place(treatment: Treatment) -> tuple[str, ...]:
    where = treatment.positions.value
    if treatment.spans:
        where += ":" + _runs(treatment.spans, "..")
    held = () if treatment.attention is Attention.FREE else (treatment.attention.value,)
    return (f"@{_runs(_layer_runs(treatment.layers), '-')}", where, *held)


def _number(value: float) -> str:
    """In the fewest digits that read back as the same number."""
    return repr(float(value)).removesuffix(".0")


def _layer_runs(layers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """First and last of every run of layers that follow one another."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), key=lambda each: each[1] - each[0])]
    return tuple((run[0], run[-1]) for run in runs)


def _runs(runs: tuple[tuple[int, int], ...], between: str) -> str:
    return ",".join(f"{first}" if first == last else f"{first}{between}{last}" for first, last in runs)
