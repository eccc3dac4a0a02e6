from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.errors import UsageError
from audit.records import FeatureId, StrengthUnit
from audit.steering.strengths import (
    NORM_DOCUMENTS,
    Scales,
    activation_per_unit,
    clamp_value,
    decoder_of,
    direction_of,
    scales,
    strength_activation,
    to_unit,
    written_norm,
)
from audit.steering.treatments import ablate, additive, clamp, multiplicative
from audit.subject import Dictionary, Subject, TokenActivations, observe, residual_norms
from audit.subject.activations import content_batches

RANDOM = "random/0@clt/0/7"


def test_scales_are_the_corpus_maxima_and_mean_norms(tiny_subject: Subject, activations: TokenActivations, measured: Scales) -> None:
    few = replace(tiny_subject, corpus=tiny_subject.corpus[:NORM_DOCUMENTS])
    np.testing.assert_allclose(scales(few, activations).residual_norm, residual_norms(few.model, few.corpus), rtol=1e-5)
    # A corpus of more documents is measured on some of them, spread evenly.
    np.testing.assert_allclose(measured.residual_norm, residual_norms(tiny_subject.model, tiny_subject.corpus), rtol=0.05)
    assert measured.max_of(FeatureId("clt", 1, 3)) == activations.layers[1].toarray()[:, 3].max()


@pytest.mark.parametrize("direction", ["clt/0/7", "clt/1/7", RANDOM])
@pytest.mark.parametrize("strength", [0.5, -2.0, 0.0])
def test_residual_unit_is_the_norm_over_all_written_layers(
    tiny_subject: Subject, measured: Scales, direction: str, strength: float
) -> None:
    treatment = additive(tiny_subject.dictionary, direction, strength)
    vectors = direction_of(tiny_subject.dictionary, treatment, measured)
    source = treatment.layers[0]
    assert tuple(vectors) == treatment.layers
    norm = float(torch.cat(list(vectors.values())).norm())
    assert written_norm(tiny_subject.dictionary, treatment, measured) == pytest.approx(norm, rel=1e-6)
    assert norm == pytest.approx(abs(strength) * measured.residual_norm[source], rel=1e-5)


def test_residual_unit_counts_only_the_layers_written(tiny_subject: Subject, measured: Scales) -> None:
    vectors = direction_of(tiny_subject.dictionary, additive(tiny_subject.dictionary, "clt/0/7", 0.5, layers=(0, 2)), measured)
    assert float(torch.cat(list(vectors.values())).norm()) == pytest.approx(0.5 * measured.residual_norm[0], rel=1e-5)


def test_max_activation_unit_is_the_decoder_times_the_largest_activation(tiny_subject: Subject, measured: Scales) -> None:
    treatment = additive(tiny_subject.dictionary, "clt/1/7", 1.5, unit=StrengthUnit.MAX_ACTIVATION)
    vectors = direction_of(tiny_subject.dictionary, treatment, measured)
    expected = tiny_subject.dictionary.decoder(FeatureId("clt", 1, 7)) * 1.5 * measured.max_of(FeatureId("clt", 1, 7))
    torch.testing.assert_close(torch.stack(list(vectors.values())), expected)


@pytest.mark.parametrize("direction", ["clt/1/7", "random/0@clt/1/7"])
def test_absolute_unit_is_the_decoder_itself(tiny_subject: Subject, measured: Scales, direction: str) -> None:
    treatment = additive(tiny_subject.dictionary, direction, -3, unit=StrengthUnit.ABSOLUTE)
    vectors = direction_of(tiny_subject.dictionary, treatment, measured)
    decoder = decoder_of(tiny_subject.dictionary, treatment)
    assert vectors.keys() == decoder.keys() == {1, 2}
    assert all(torch.equal(vectors[layer], -3 * decoder[layer]) for layer in vectors)
    assert strength_activation(tiny_subject.dictionary, treatment, measured) == -3.0


LINEAR = (StrengthUnit.RESIDUAL, StrengthUnit.MAX_ACTIVATION, StrengthUnit.ABSOLUTE)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    strength=st.floats(-1e6, 1e6),
    unit=st.sampled_from(LINEAR),
    other=st.sampled_from(LINEAR),
    direction=st.sampled_from(["clt/1/7", RANDOM]),
)
def test_units_are_proportional(
    tiny_subject: Subject, measured: Scales, strength: float, unit: StrengthUnit, other: StrengthUnit, direction: str
) -> None:
    dictionary = tiny_subject.dictionary
    treatment = additive(dictionary, direction, strength, unit=unit)
    here, there = (activation_per_unit(dictionary, treatment, measured, each) for each in (unit, other))
    converted = to_unit(dictionary, treatment, measured, other)
    assert converted == replace(treatment, unit=other, strength=strength if other is unit else strength * here / there)
    assert strength_activation(dictionary, treatment, measured) == strength * here
    assert activation_per_unit(dictionary, treatment, measured, StrengthUnit.ABSOLUTE) == 1.0


def test_a_clamps_value_is_an_activation(tiny_subject: Subject, measured: Scales) -> None:
    dictionary = tiny_subject.dictionary
    largest = measured.max_of(FeatureId("clt", 1, 7))
    assert clamp_value(dictionary, clamp(dictionary, "clt/1/7", -3), measured) == -3.0
    half = clamp(dictionary, "clt/1/7", 0.5, unit=StrengthUnit.MAX_ACTIVATION)
    assert clamp_value(dictionary, half, measured) == 0.5 * largest
    assert clamp_value(dictionary, ablate(dictionary, "clt/1/7"), measured) == 0.0
    assert to_unit(dictionary, half, measured, StrengthUnit.ABSOLUTE) == clamp(dictionary, "clt/1/7", 0.5 * largest)


def refused(subject: Subject) -> list[tuple[str, Callable[[Scales], object]]]:
    """What has no meaning, and why."""
    dictionary = subject.dictionary
    factor, held = multiplicative(dictionary, "clt/0/7", 2), clamp(dictionary, "clt/0/7", 2)
    return [
        ("does not hold the feature's activation", lambda scales: clamp_value(dictionary, factor, scales)),
        ("does not hold the feature's activation", lambda scales: clamp_value(dictionary, additive(dictionary, "clt/0/7", 2), scales)),
        ("no strength that is proportional", lambda scales: strength_activation(dictionary, factor, scales)),
        ("no strength that is proportional", lambda scales: activation_per_unit(dictionary, held, scales, StrengthUnit.KL)),
        ("activation decides", lambda scales: direction_of(dictionary, held, scales)),
        ("activation decides", lambda scales: written_norm(dictionary, ablate(dictionary, "clt/0/7"), scales)),
        ("'clamp' cannot have the unit 'residual'", lambda scales: to_unit(dictionary, held, scales, StrengthUnit.RESIDUAL)),
        (
            "'add' cannot have the unit 'factor'",
            lambda scales: to_unit(dictionary, additive(dictionary, "clt/0/7", 2), scales, StrengthUnit.FACTOR),
        ),
    ]


@pytest.mark.parametrize("case", range(8))
def test_strengths_without_a_meaning_are_refused(tiny_subject: Subject, measured: Scales, case: int) -> None:
    why, call = refused(tiny_subject)[case]
    with pytest.raises(UsageError, match=why):
        call(measured)


@pytest.mark.parametrize("unit", LINEAR)
def test_a_random_direction_has_the_features_norm_at_each_layer(tiny_subject: Subject, measured: Scales, unit: StrengthUnit) -> None:
    own = direction_of(tiny_subject.dictionary, additive(tiny_subject.dictionary, "clt/0/7", 0.5, unit=unit), measured)
    random = direction_of(tiny_subject.dictionary, additive(tiny_subject.dictionary, RANDOM, 0.5, unit=unit), measured)
    for layer, vector in own.items():
        assert float(random[layer].norm()) == pytest.approx(float(vector.norm()), rel=1e-5)
        assert not torch.allclose(random[layer], vector)


@pytest.mark.parametrize("direction", ["clt/0/7", RANDOM])
def test_units_convert_without_changing_what_is_written(tiny_subject: Subject, measured: Scales, direction: str) -> None:
    treatment = additive(tiny_subject.dictionary, direction, 0.7)
    other = to_unit(tiny_subject.dictionary, treatment, measured, StrengthUnit.MAX_ACTIVATION)
    assert other.unit is StrengthUnit.MAX_ACTIVATION
    before, after = (direction_of(tiny_subject.dictionary, one, measured) for one in (treatment, other))
    torch.testing.assert_close(torch.stack(list(after.values())), torch.stack(list(before.values())))
    back = to_unit(tiny_subject.dictionary, other, measured, StrengthUnit.RESIDUAL)
    assert back.strength == pytest.approx(0.7)


def test_doses_without_a_meaning_are_refused(
    tiny_subject: Subject, measured: Scales, with_tensors: Callable[..., Dictionary], dense_of: Callable[[Dictionary], Any]
) -> None:
    silent = replace(measured, max_activation=tuple(np.zeros_like(layer) for layer in measured.max_activation))
    with pytest.raises(UsageError, match="never fires"):
        clamp_value(tiny_subject.dictionary, clamp(tiny_subject.dictionary, "clt/0/7", 1, unit=StrengthUnit.MAX_ACTIVATION), silent)
    with pytest.raises(UsageError, match="never fires"):
        direction_of(tiny_subject.dictionary, additive(tiny_subject.dictionary, "clt/0/7", 1, unit=StrengthUnit.MAX_ACTIVATION), silent)
    W_dec = dense_of(tiny_subject.dictionary).W_dec
    empty = with_tensors(tiny_subject.dictionary, W_dec=[torch.zeros_like(weights) for weights in W_dec])
    for unit in (StrengthUnit.RESIDUAL, StrengthUnit.ABSOLUTE):
        with pytest.raises(UsageError, match="writes nothing"):
            direction_of(empty, additive(empty, "clt/0/7", 1, unit=unit), measured)
    with pytest.raises(UsageError, match="activation decides"):
        direction_of(tiny_subject.dictionary, multiplicative(tiny_subject.dictionary, "clt/0/7", 0), measured)


@pytest.mark.parametrize(
    ("written", "lands"),
    [
        ("resid_pre", "resid_pre"),
        ("attn_z", "resid_mid"),
        ("attn_out", "resid_mid"),
        ("resid_mid", "resid_mid"),
        ("mlp_in", "resid_post"),
        ("mlp_out", "resid_post"),
        ("resid_post", "resid_post"),
    ],
)
def test_a_dose_is_measured_against_the_stream_that_it_lands_in(tiny_sae_subject: Subject, written: str, lands: str) -> None:
    dictionary = replace(tiny_sae_subject.dictionary, input_hook=written, output_hook=written)
    few = replace(tiny_sae_subject, dictionary=dictionary, corpus=tiny_sae_subject.corpus[:20])
    own = observe(few.model, dictionary, few.corpus)
    measured = scales(few, own)
    expected = [
        torch.cat([batch.values[layer, lands] for batch in content_batches(few.model, few.corpus, [(layer, lands)])]).norm(dim=1).mean()
        for layer in range(3)
    ]
    np.testing.assert_allclose(measured.residual_norm, expected, rtol=1e-5)
    assert [len(highest) for highest in measured.max_activation] == [0, 24, 0]
    assert measured.max_of(FeatureId("sae", 1, 3)) == own.layers[1].toarray()[:, 3].max()
    vectors = direction_of(dictionary, additive(dictionary, "sae/1/3", -0.5), measured)
    assert list(vectors) == [1]
    assert float(vectors[1].norm()) == pytest.approx(0.5 * float(expected[1]), rel=1e-5)


def test_directions_are_measured_where_they_are(tiny_vector_subject: Subject) -> None:
    dictionary, model = tiny_vector_subject.dictionary, tiny_vector_subject.model
    own = observe(model, dictionary, tiny_vector_subject.corpus)
    measured = scales(tiny_vector_subject, own)
    assert [len(highest) for highest in measured.max_activation] == [6, 0, 6]
    treatment = additive(dictionary, "vector/2/1", 2.0, unit=StrengthUnit.MAX_ACTIVATION)
    stream = torch.cat([batch.values[2, "resid_post"] for batch in content_batches(model, tiny_vector_subject.corpus, [(2, "resid_post")])])
    vector = dictionary.decoder(FeatureId("vector", 2, 1))[0]
    largest = float((stream @ (vector / vector.norm())).max())
    torch.testing.assert_close(direction_of(dictionary, treatment, measured), {2: 2.0 * largest * vector})
