"""Treatments: exactly what is done to the model, in one string form that round-trips.

    add 0.5 residual clt/2/81 @2-4 all
    add 1.0 max_activation random/0@clt/2/81 @2-4 generated
    multiply 0.0 factor clt/2/81 @2,4 prompt

Word by word: operation, strength, its unit, direction, layers written, positions. Where a treatment writes:

- ``prompt``: in the forward pass over the prompt, at every token but BOS;
- ``generated``: in the pass of every generated token, that is, not before the first one was drawn;
- ``all``: both. BOS is never written to: its residual is an attention sink, many times larger than any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from audit.errors import UsageError
from audit.records import FeatureId, Operation, Positions, StrengthUnit, Treatment

if TYPE_CHECKING:
    from audit.subject import Dictionary

_VERBS = {"add": Operation.ADDITIVE, "multiply": Operation.MULTIPLICATIVE}
_FORM = "Write, for example: add 0.5 residual clt/2/81 @2-4 all"
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")
_RANDOM = re.compile(r"random/(\d+)@(.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """What a treatment's ``direction`` names."""

    feature: FeatureId
    """The feature, or the one whose layers and norms a random direction takes."""
    random_seed: int | None
    """None for the feature's own decoder."""

    def __str__(self) -> str:
        return str(self.feature) if self.random_seed is None else f"random/{self.random_seed}@{self.feature}"


def parse_direction(text: str) -> Direction:
    """Read ``clt/2/81`` or ``random/<seed>@clt/2/81``.

    Raises:
        UsageError: the text is not of either form.
    """
    found = _RANDOM.fullmatch(text)
    if found is None:
        return Direction(feature=FeatureId.parse(text), random_seed=None)
    return Direction(feature=FeatureId.parse(found[2]), random_seed=int(found[1]))


def number(value: float) -> str:
    """A strength in the fewest digits that read back as the same number: ``0.5``, ``1``."""
    text = repr(float(value))
    return text.removesuffix(".0")


def render(treatment: Treatment) -> str:
    """The string form; it leaves out only the dictionary's hash, which is the same in a whole sweep."""
    verb = next(word for word, operation in _VERBS.items() if operation is treatment.operation)
    layers = ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in _spans(treatment.layers))
    return f"{verb} {number(treatment.strength)} {treatment.unit} {treatment.direction} @{layers} {treatment.positions}"


def parse(text: str, *, dictionary_sha256: str) -> Treatment:
    """Read the string form: ``parse(render(t), dictionary_sha256=t.dictionary_sha256) == t``.

    Raises:
        UsageError: a part is missing, unknown, or contradicts another.
    """
    words = text.split()
    if len(words) != 6:
        raise _refused(text, f"it has {len(words)} parts instead of six (operation, strength, unit, direction, layers, positions)")
    verb, strength, unit, direction, layers, positions = words
    if verb not in _VERBS:
        raise _refused(text, f"'{verb}' is no operation; there are {', '.join(_VERBS)}")
    if unit not in list(StrengthUnit):
        raise _refused(text, f"'{unit}' is no unit; there are {', '.join(StrengthUnit)}")
    if positions not in list(Positions):
        raise _refused(text, f"'{positions}' names no positions; there are {', '.join(Positions)}")
    treatment = Treatment(
        direction=direction,
        operation=_VERBS[verb],
        strength=_parse_number(strength, text),
        unit=StrengthUnit(unit),
        layers=_parse_layers(layers, text),
        positions=Positions(positions),
        dictionary_sha256=dictionary_sha256,
    )
    check_form(treatment)
    return treatment


def digest(treatment: Treatment) -> str:
    """``sha256:`` and the digest of the treatment's canonical JSON (keys sorted, no spaces)."""
    text = json.dumps(asdict(treatment), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def additive(
    dictionary: Dictionary,
    direction: str,
    strength: float,
    *,
    unit: StrengthUnit = StrengthUnit.RESIDUAL,
    layers: Sequence[int] | None = None,
    positions: Positions = Positions.ALL,
) -> Treatment:
    """x ← x + s·v.

    Args:
        dictionary: where the feature is.
        direction: a feature, or a random direction of a feature's norms.
        strength: s, in ``unit``.
        unit: ``residual`` or ``max_activation``.
        layers: layers written; None for all that the feature writes (source layer to last for a CLT, the source layer for a PLT).
        positions: at which tokens.

    Raises:
        UsageError: the parts contradict each other, or the dictionary.
    """
    return _checked(dictionary, direction, Operation.ADDITIVE, float(strength), unit, layers, positions)


def multiplicative(
    dictionary: Dictionary,
    direction: str,
    factor: float,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = Positions.ALL,
) -> Treatment:
    """a ← M·a, written as x ← x + (M − 1)·a(t)·W_dec: M = 1 changes nothing, M = 0 ablates.

    Args:
        dictionary: where the feature is.
        direction: a feature.
        factor: M.
        layers: layers written; None for all that the feature writes.
        positions: at which tokens.

    Raises:
        UsageError: the parts contradict each other, or the dictionary.
    """
    return _checked(dictionary, direction, Operation.MULTIPLICATIVE, float(factor), StrengthUnit.FACTOR, layers, positions)


def check(treatment: Treatment, dictionary: Dictionary) -> None:
    """Make sure that a treatment is complete, consistent, and about this dictionary.

    Raises:
        UsageError: it is not.
    """
    direction = check_form(treatment)
    if treatment.dictionary_sha256 != dictionary.sha256:
        raise _refused(render(treatment), "it was written for another dictionary (the hashes differ)")
    writable = dictionary.written_layers(direction.feature)
    if not set(treatment.layers) <= set(writable):
        raise _refused(render(treatment), f"{direction.feature} writes to layers {writable[0]} to {writable[-1]} only")


def check_form(treatment: Treatment) -> Direction:
    """What can be checked without the dictionary; gives the direction.

    Raises:
        UsageError: the treatment is incomplete or contradicts itself.
    """
    direction = parse_direction(treatment.direction)
    problem = _problem(treatment, direction)
    if problem is not None:
        raise _refused(render(treatment), problem)
    return direction


def _problem(treatment: Treatment, direction: Direction) -> str | None:
    if not math.isfinite(treatment.strength):
        return "its strength is not a finite number"
    if not treatment.layers or any(later <= earlier for earlier, later in pairwise(treatment.layers)):
        return "its layers are not in rising order, each once"
    if (treatment.operation is Operation.MULTIPLICATIVE) != (treatment.unit is StrengthUnit.FACTOR):
        return f"it cannot have the unit '{treatment.unit}': adding takes residual or max_activation, multiplying takes factor"
    if treatment.operation is Operation.MULTIPLICATIVE and direction.random_seed is not None:
        return "a random direction has no activation that could be multiplied"
    return None


def _checked(
    dictionary: Dictionary,
    direction: str,
    operation: Operation,
    strength: float,
    unit: StrengthUnit,
    layers: Sequence[int] | None,
    positions: Positions,
) -> Treatment:
    written = dictionary.written_layers(parse_direction(direction).feature) if layers is None else tuple(layers)
    treatment = Treatment(
        direction=direction,
        operation=operation,
        strength=strength,
        unit=unit,
        layers=written,
        positions=positions,
        dictionary_sha256=dictionary.sha256,
    )
    check(treatment, dictionary)
    return treatment


def _refused(text: str, why: str) -> UsageError:
    return UsageError("Treatment refused", f"'{text}': {why}.", _FORM)


def _parse_number(word: str, text: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise _refused(text, f"'{word}' is not a number") from None


def _parse_layers(word: str, text: str) -> tuple[int, ...]:
    layers: list[int] = []
    for part in word.removeprefix("@").split(","):
        span = _SPAN.fullmatch(part)
        if span is None or not word.startswith("@"):
            raise _refused(text, f"'{word}' does not name layers, such as @2-4 or @2,4")
        layers += range(int(span[1]), int(span[2] or span[1]) + 1)
    return tuple(layers)


def _spans(layers: Sequence[int]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], layer)
        else:
            spans.append((layer, layer))
    return spans
