"""What a caller names: features, treatments, positions; and the cells that they add to a sweep's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from audit.errors import UsageError
from audit.events import Observer
from audit.records import ArmKind, Attention, AuditConfig, Cell, FeatureId, Operation, Positions, PromptKind, StrengthUnit, Treatment
from audit.steering.doses import calibrate, doses_of
from audit.steering.strengths import Scales, written_norm
from audit.steering.treatments import ablate, check, clamp, multiplicative, number, parse, parse_direction, render
from audit.subject import Dictionary, Subject

_BEFORE = "add 1 residual clt/0/0 @0"
"""All of a treatment but its positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the treatments of a sweep write, and what they do to attention."""

    positions: Positions
    spans: tuple[tuple[int, int], ...] = ()
    """As in ``Treatment``."""
    attention: Attention = Attention.FREE

    def put(self, treatment: Treatment) -> Treatment:
        """The same treatment there."""
        return replace(treatment, positions=self.positions, spans=self.spans, attention=self.attention)


def read_positions(text: str) -> Place:
    """Read ``prompt``, ``generated``, ``all`` or ``spans:12..40,-8..-1``.

    Raises:
        UsageError: the text is none of them.
    """
    if len(text.split()) != 1:
        raise _no_positions(text, "it has to be one word")
    try:
        read = parse(f"{_BEFORE} {text}", dictionary_sha256="")
    except UsageError as problem:
        raise _no_positions(text, problem.why.partition("': ")[2].rstrip(".")) from None
    return Place(positions=read.positions, spans=read.spans)


def place_of(config: AuditConfig, default: str) -> Place:
    """The caller's positions, else ``default``, with the caller's attention.

    Raises:
        UsageError: they cannot be read.
    """
    return replace(read_positions(config.positions or default), attention=Attention(config.attention))


def named_treatments(config: AuditConfig, dictionary_sha256: str) -> tuple[Treatment, ...]:
    """The treatments that the caller wrote down, each once.

    Raises:
        UsageError: one cannot be read, or contradicts itself.
    """
    return tuple(dict.fromkeys(parse(text, dictionary_sha256=dictionary_sha256) for text in config.treatments))


def named_features(config: AuditConfig) -> tuple[FeatureId, ...]:
    """The features that the caller named, then those of the treatments that were written down, each once.

    Raises:
        UsageError: a name or a treatment cannot be read.
    """
    written = (parse_direction(each.direction).feature for each in named_treatments(config, ""))
    return tuple(dict.fromkeys([*(FeatureId.parse(name) for name in config.features), *written]))


def check_named(config: AuditConfig, dictionary: Dictionary) -> None:
    """Refuse what does not fit the dictionary before anything is computed.

    Raises:
        UsageError: it lacks a named feature, or a treatment writes where its feature does not.
    """
    for feature in named_features(config):
        dictionary.check(feature)
    for treatment in named_treatments(config, dictionary.sha256):
        check(treatment, dictionary)


def further_cells(
    subject: Subject, config: AuditConfig, features: Sequence[FeatureId], place: Place, scales: Scales, *, observer: Observer
) -> tuple[Cell, ...]:
    """Cells beside a sweep's additive ones, which no control is matched to: what is done to activations, and treatments in words.

    Args:
        subject: model and dictionary.
        config: names them.
        features: the candidates.
        place: where those write that are not written down word by word.
        scales: what strengths are measured against.
        observer: as ``doses.calibrate``.

    Raises:
        UsageError: a treatment is refused, or its feature has no such dose.
        InsufficientEvidence, Interrupted: as ``doses.calibrate``.
    """
    listed = [(f"{feature} {name}", place.put(each)) for feature in features for name, each in _on_activations(config, subject, feature)]
    listed += [(render(treatment), treatment) for treatment in named_treatments(config, subject.dictionary.sha256)]
    treatments = [treatment for _, treatment in listed]
    scales = calibrate(subject, treatments, scales, observer=observer)
    found = doses_of(subject, treatments, scales, observer=observer)
    return tuple(
        Cell(
            arm=ArmKind.CANDIDATE,
            prompt=PromptKind.SCENARIO,
            treatment=treatment,
            label=label,
            written_norm=written_norm(subject.dictionary, treatment, scales) if treatment.operation is Operation.ADDITIVE else None,
            doses=doses,
        )
        for (label, treatment), doses in zip(listed, found, strict=True)
    )


def _on_activations(config: AuditConfig, subject: Subject, feature: FeatureId) -> Iterator[tuple[str, Treatment]]:
    """(name, treatment) of all that is done to a feature's own activation."""
    dictionary, name = subject.dictionary, str(feature)
    for factor in config.factors:
        yield f"factor {number(factor)}", multiplicative(dictionary, name, factor)
    for value in config.clamps:
        yield f"clamp {number(value)}", clamp(dictionary, name, value, unit=StrengthUnit.MAX_ACTIVATION)
    if config.ablate:
        yield "ablated", ablate(dictionary, name)


def _no_positions(text: str, why: str) -> UsageError:
    return UsageError("Positions refused", f"'{text}': {why}.", "Give prompt, generated, all, or spans such as spans:12..40,-8..-1.")
