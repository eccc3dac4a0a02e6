"""Strengths: what a number and its unit mean as vectors, and the same dose in another unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from audit.errors import UsageError
from audit.records import FeatureId, Operation, StrengthUnit, Treatment
from audit.steering.controls import random_decoder
from audit.steering.treatments import check, parse_direction, render
from audit.subject import Dictionary, Subject, TokenActivations
from audit.subject.activations import residual_norms

NORM_DOCUMENTS = 200
"""Documents of the corpus, evenly spread, on which residual norms are measured."""
SAME = 1e-9
"""Two activations whose relative difference is smaller are one."""
LANDS = {"resid_pre": "resid_pre", "attn_z": "resid_mid", "attn_out": "resid_mid", "resid_mid": "resid_mid"}
"""Hook point written → where in the residual stream that lands; ``resid_post`` for the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A strength in the unit ``kl`` and the activation that it was found to be.

    It is that of the direction at its layers, written at every token with free attention, wherever a treatment writes.
    """

    direction: str
    layers: tuple[int, ...]
    strength: float
    """Nats, with the sign of the activation."""
    activation: float
    """What the decoder is multiplied by."""

    def holds(self, treatment: Treatment) -> bool:
        """Whether a treatment adds the same direction at the same layers, at any strength."""
        return treatment.operation is Operation.ADDITIVE and (self.direction, self.layers) == (treatment.direction, treatment.layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scales:
    """What strengths are measured against, all from the corpus."""

    residual_norm: tuple[float, ...]
    """Mean norm, a layer, of the residual stream that a vector written there lands in (``LANDS``)."""
    max_activation: tuple[NDArray[np.float32], ...]
    """(n_features,) a layer: the feature's largest activation on the corpus."""
    kl: tuple[Calibrated, ...] = ()
    """What ``doses.calibrate`` found for strengths in the unit ``kl``, each once."""

    def residual_of(self, feature: FeatureId) -> float:
        """Mean norm of the residual stream after the feature's source layer."""
        return self.residual_norm[feature.layer]

    def max_of(self, feature: FeatureId) -> float:
        """The feature's largest activation on the corpus; 0 if it never fires there."""
        return float(self.max_activation[feature.layer][feature.index])


def scales(subject: Subject, activations: TokenActivations) -> Scales:
    """Measure a corpus: residual norms on at most ``NORM_DOCUMENTS`` of its documents, largest activations on all.

    Args:
        subject: model and dictionary.
        activations: of the corpus.
    """
    lands = LANDS.get(subject.dictionary.output_hook, "resid_post")
    norms = residual_norms(subject.model, subject.corpus[:: -(-len(subject.corpus) // NORM_DOCUMENTS) or 1], lands)
    return Scales(residual_norm=tuple(float(norm) for norm in norms), max_activation=tuple(_highest(layer) for layer in activations.layers))


def _highest(layer: csr_matrix) -> NDArray[np.float32]:
    if not layer.shape[0] or not layer.shape[1]:
        return np.zeros(layer.shape[1], dtype=np.float32)
    return np.asarray(layer.max(axis=0).todense(), dtype=np.float32).reshape(-1)


def decoder_of(dictionary: Dictionary, treatment: Treatment) -> dict[int, Tensor]:
    """The direction before any strength: layer written → (d_model,) float32."""
    direction = parse_direction(treatment.direction)
    rows = dictionary.decoder(direction.feature)
    if direction.random_seed is not None:
        rows = random_decoder(str(direction), rows)
    return {layer: rows[layer - direction.feature.layer] for layer in treatment.layers}


def direction_of(dictionary: Dictionary, treatment: Treatment, scales: Scales) -> dict[int, Tensor]:
    """What an additive treatment adds to the output hook point: layer written → (d_model,) float32.

    ``residual``: the vectors of all written layers, put end to end, have norm strength × mean norm of the residual
    stream after the source layer. ``max_activation``: strength × the feature's largest corpus activation × its decoder.
    ``absolute``: strength × its decoder. ``kl``: what the calibration found for this strength × its decoder.

    Raises:
        UsageError: the treatment is refused, is not additive, its unit is 0 or undefined for this feature, or it was not calibrated.
    """
    check(treatment, dictionary)
    if treatment.operation is not Operation.ADDITIVE:
        why = f"'{render(treatment)}' writes what the feature's activation decides."
        raise UsageError("Not a fixed direction", why, "Use an additive one.")
    scale = strength_activation(dictionary, treatment, scales)
    return {layer: vector * scale for layer, vector in decoder_of(dictionary, treatment).items()}


def clamp_value(dictionary: Dictionary, treatment: Treatment, scales: Scales) -> float:
    """The activation c that a clamp, or with 0 an ablation, holds its feature at.

    Raises:
        UsageError: the treatment is refused, does not fix an activation, or its unit is 0 or undefined for this feature.
    """
    check(treatment, dictionary)
    if treatment.operation is Operation.ABLATE:
        return 0.0
    if treatment.operation is not Operation.CLAMP:
        why = f"'{render(treatment)}' does not hold the feature's activation at a value."
        raise UsageError("Not a clamp", why, "Use 'clamp' or 'ablate'.")
    return strength_activation(dictionary, treatment, scales)


def written_norm(dictionary: Dictionary, treatment: Treatment, scales: Scales) -> float:
    """Norm of all that an additive treatment writes: of its vectors of all layers, put end to end.

    It is in units of the model's own activations, before any layer norm.

    Raises:
        UsageError: as ``direction_of``.
    """
    return float(torch.stack(list(direction_of(dictionary, treatment, scales).values())).double().norm())


def strength_activation(dictionary: Dictionary, treatment: Treatment, scales: Scales) -> float:
    """The strength of an additive or clamping treatment as an activation: what the decoder is multiplied by, or the feature held at.

    Raises:
        UsageError: the treatment is refused, multiplies, its unit is 0 or undefined for this feature, or it was not calibrated.
    """
    check(treatment, dictionary)
    if treatment.unit is StrengthUnit.KL:
        return _calibrated(treatment, scales)
    return treatment.strength * activation_per_unit(dictionary, treatment, scales, treatment.unit)


def to_unit(dictionary: Dictionary, treatment: Treatment, scales: Scales, unit: StrengthUnit) -> Treatment:
    """The same additive or clamping treatment with its strength in another unit.

    Only the strengths of the calibration have a value in ``kl``: others are measured, by ``doses.measure_kl``.

    Raises:
        UsageError: as ``strength_activation``, or the operation does not take the unit.
    """
    activation = strength_activation(dictionary, treatment, scales)
    if unit is treatment.unit:
        return treatment
    wanted = replace(treatment, unit=unit)
    check(wanted, dictionary)
    if unit is StrengthUnit.KL:
        return replace(wanted, strength=_nats(treatment, activation, scales))
    return replace(wanted, strength=activation / activation_per_unit(dictionary, treatment, scales, unit) + 0.0)  # −0 is 0


def activation_per_unit(dictionary: Dictionary, treatment: Treatment, scales: Scales, unit: StrengthUnit) -> float:
    """What a strength of 1 is as an activation, in a unit in which activations are proportional to strengths; above 0.

    Args:
        dictionary: where the treatment's feature is.
        treatment: whose direction and layers are taken.
        scales: what strengths are measured against.
        unit: ``residual``, ``max_activation`` or ``absolute``.

    Raises:
        UsageError: it is 0 or undefined for this feature, or strengths in the unit are not proportional to activations.
    """
    feature = parse_direction(treatment.direction).feature
    if unit is StrengthUnit.MAX_ACTIVATION:
        value, lacking = scales.max_of(feature), "never fires on the corpus, so it has no largest activation"
    elif unit in (StrengthUnit.RESIDUAL, StrengthUnit.ABSOLUTE):
        norm = float(torch.stack(list(decoder_of(dictionary, treatment).values())).norm())
        whole = scales.residual_of(feature) / norm if norm > 0 else 0.0
        value, lacking = (whole if unit is StrengthUnit.RESIDUAL else float(norm > 0)), "writes nothing at these layers"
    else:
        value, lacking = 0.0, f"has no strength that is proportional to its activation in the unit '{unit}'"
    if not value > 0:
        raise UsageError("No such dose", f"'{render(treatment)}': {feature} {lacking}.", "Choose another feature, unit or other layers.")
    return value


def _calibrated(treatment: Treatment, scales: Scales) -> float:
    """The activation that the calibration found for a strength in ``kl``; 0 for 0."""
    for known in scales.kl:
        if known.strength == treatment.strength and known.holds(treatment):
            return known.activation
    if treatment.strength == 0:
        return 0.0
    why = f"'{render(treatment)}': which activation has this divergence is measured, and these scales do not hold it."
    raise UsageError("Not calibrated", why, "Call doses.calibrate on it, or doses.scales_of on the plan that it is in.")


def _nats(treatment: Treatment, activation: float, scales: Scales) -> float:
    """The strength in ``kl`` that the calibration found an activation for; 0 for 0."""
    for known in scales.kl:
        if known.holds(treatment) and math.isclose(known.activation, activation, rel_tol=SAME):
            return known.strength
    if activation == 0:
        return 0.0
    why = f"'{render(treatment)}': no strength in the unit 'kl' was calibrated at this activation, {activation:.4g}."
    raise UsageError("Not calibrated", why, "Measure its divergence with doses.measure_kl.")
