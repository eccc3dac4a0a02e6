from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audit.errors import InsufficientEvidence, Interrupted, UsageError
from audit.events import Event, SilentObserver
from audit.ledger import identity
from audit.records import ArmKind, Attention, Cell, Doses, FeatureId, Operation, Positions, PromptKind, StrengthUnit, SweepPlan, Treatment
from audit.steering import divergence, doses
from audit.steering.divergence import MIN_CONTENT, NEUTRAL_DOCUMENTS, NEUTRAL_TOKENS, divergences, neutral_text
from audit.steering.doses import calibrate, doses_of, measure_kl, scales_of
from audit.steering.strengths import Calibrated, Scales, direction_of, strength_activation, to_unit
from audit.steering.treatments import ablate, additive, clamp, multiplicative
from audit.subject import Dictionary, Subject

QUIET = SilentObserver()
KL, ABSOLUTE, RESIDUAL, MAX = StrengthUnit.KL, StrengthUnit.ABSOLUTE, StrengthUnit.RESIDUAL, StrengthUnit.MAX_ACTIVATION


@contextmanager
def hooked(subject: Subject, treatment: Treatment, measured: Scales) -> Iterator[None]:
    """The MLPs of one pass of one document, changed as the treatment's operation is defined, at every token but the first."""
    dictionary, model = subject.dictionary, subject.model
    feature = FeatureId.parse(treatment.direction.rpartition("@")[2])
    fixed = direction_of(dictionary, treatment, measured) if treatment.operation is Operation.ADDITIVE else {}
    seen: dict[str, Tensor] = {}

    def remember(module: object, args: tuple[Tensor, ...]) -> None:
        seen["a"] = dictionary.encode(feature.layer, args[0])[..., feature.index]

    def write(layer: int) -> Callable[..., Tensor]:
        def hook(module: object, args: object, output: Tensor) -> Tensor:
            if treatment.operation is Operation.ADDITIVE:
                added = fixed[layer].expand_as(output).clone()
            else:
                after = {
                    Operation.MULTIPLICATIVE: treatment.strength * seen["a"],
                    Operation.CLAMP: torch.full_like(seen["a"], treatment.strength),
                    Operation.ABLATE: torch.zeros_like(seen["a"]),
                }[treatment.operation]
                added = (after - seen["a"])[..., None] * dictionary.decoder(feature)[layer - feature.layer]
            added[:, 0] = 0
            return output + added

        return hook

    handles = [model.layer(feature.layer).get_submodule("mlp").register_forward_pre_hook(remember)]
    handles += [model.layer(layer).get_submodule("mlp").register_forward_hook(write(layer)) for layer in treatment.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def brute_force(subject: Subject, treatment: Treatment, measured: Scales) -> float:
    """KL(unsteered ‖ steered) by its definition, token by token, in float64 throughout."""
    model, each = subject.model, []
    for document in neutral_text(subject):
        ids = torch.tensor([document])
        plain = torch.softmax(model.forward(ids)[0].double(), dim=-1)
        with hooked(subject, treatment, measured):
            steered = torch.softmax(model.forward(ids)[0].double(), dim=-1)
        for at, token in enumerate(document):
            if at > 0 and token not in model.special_ids:
                each.append(sum(float(p) * math.log(float(p) / float(q)) for p, q in zip(plain[at], steered[at], strict=True)))
    return sum(each) / len(each)


def treatments_of(subject: Subject, firing: FeatureId) -> list[Treatment]:
    dictionary = subject.dictionary
    return [
        additive(dictionary, str(firing), 0.5),
        additive(dictionary, "clt/1/7", -0.3, layers=(2,)),
        additive(dictionary, "random/4@clt/0/9", 0.7, layers=(0, 2)),
        additive(dictionary, "clt/1/7", -1.5, unit=ABSOLUTE),
        additive(dictionary, "clt/0/7", 1, unit=MAX),
        multiplicative(dictionary, str(firing), 3),
        clamp(dictionary, str(firing), 2.5),
        ablate(dictionary, str(firing)),
    ]


def test_divergences_are_those_of_the_definition(tiny_subject: Subject, measured: Scales, firing: FeatureId) -> None:
    treatments = treatments_of(tiny_subject, firing)
    found = measure_kl(tiny_subject, treatments, measured, observer=QUIET)
    expected = [brute_force(tiny_subject, each, measured) for each in treatments]
    assert min(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_divergences_do_not_depend_on_the_batches(
    tiny_subject: Subject, measured: Scales, firing: FeatureId, monkeypatch: pytest.MonkeyPatch
) -> None:
    treatments = treatments_of(tiny_subject, firing)
    whole = measure_kl(tiny_subject, treatments, measured, observer=QUIET)
    seen: list[int] = []
    monkeypatch.setattr(divergence, "compile_rows", counted(divergence.compile_rows, seen))
    monkeypatch.setattr(divergence, "LOGITS", 4 * NEUTRAL_TOKENS * tiny_subject.model.vocabulary)
    monkeypatch.setattr(divergence, "PROBABILITIES", 3 * tiny_subject.model.vocabulary)
    np.testing.assert_allclose(measure_kl(tiny_subject, treatments, measured, observer=QUIET), whole, rtol=1e-4)
    assert seen == [4, 4, 3]  # three treatments beside the unsteered row
    seen.clear()
    monkeypatch.setattr(divergence, "TOKENS", 1)
    np.testing.assert_allclose(measure_kl(tiny_subject, treatments, measured, observer=QUIET), whole, rtol=1e-4)
    assert seen == [2] * 8


def counted(compile_rows: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    def wrapped(model: object, dictionary: object, treatments: list[object], scales: object) -> Any:
        seen.append(len(treatments))
        return compile_rows(model, dictionary, treatments, scales)

    return wrapped


def test_what_does_nothing_has_a_divergence_of_exactly_zero(tiny_subject: Subject, measured: Scales, firing: FeatureId) -> None:
    dictionary = tiny_subject.dictionary
    nothing = [*(additive(dictionary, str(firing), 0, unit=unit) for unit in (RESIDUAL, MAX, ABSOLUTE, KL))]
    nothing.append(multiplicative(dictionary, str(firing), 1))
    assert measure_kl(tiny_subject, nothing, measured, observer=QUIET) == (0.0,) * 5
    # Nor does it change the pass that it is measured in, where it is measured.
    assert divergences(tiny_subject, nothing, measured, observer=QUIET).tolist() == [0.0] * 5
    assert measure_kl(tiny_subject, [], measured, observer=QUIET) == ()


def test_where_a_treatment_writes_does_not_matter(tiny_subject: Subject, measured: Scales) -> None:
    dictionary = tiny_subject.dictionary
    treatments = [
        additive(dictionary, "clt/0/7", 0.5),
        additive(dictionary, "clt/0/7", 0.5, positions=Positions.GENERATED),
        additive(dictionary, "clt/0/7", 0.5, positions=Positions.SPANS, spans=((3, 4),), attention=Attention.FROZEN),
    ]
    found = measure_kl(tiny_subject, treatments, measured, observer=QUIET)
    assert found[0] > 0
    assert found == (found[0],) * 3


def test_neutral_text_is_spread_over_the_corpus_and_cut_short(tiny_subject: Subject) -> None:
    text = neutral_text(tiny_subject)
    corpus = tiny_subject.corpus
    assert text == tuple(corpus[len(corpus) * part // NEUTRAL_DOCUMENTS][:NEUTRAL_TOKENS] for part in range(NEUTRAL_DOCUMENTS))
    assert all(document[0] == tiny_subject.model.first_id for document in text)
    long = replace(tiny_subject, corpus=(corpus[0] * 9, *corpus[1:]))
    assert [len(document) for document in neutral_text(long)][:1] == [NEUTRAL_TOKENS]


def test_documents_without_content_are_no_neutral_text(tiny_subject: Subject, measured: Scales) -> None:
    bos, words = tiny_subject.corpus[0][0], [token for token in tiny_subject.corpus[0] if token not in tiny_subject.model.special_ids]
    short, enough = (bos, *words[: MIN_CONTENT - 1]), (bos, *words[:MIN_CONTENT])
    few = replace(tiny_subject, corpus=(short, enough))
    assert neutral_text(few) == (enough,)
    with pytest.raises(InsufficientEvidence, match="No neutral text"):
        measure_kl(replace(few, corpus=(short,)), [additive(few.dictionary, "clt/0/7", 1)], measured, observer=QUIET)


def test_logits_that_are_not_finite_are_refused(tiny_subject: Subject, measured: Scales) -> None:
    with pytest.raises(UsageError, match="add 1e\\+38 residual clt/0/7 .* not finite"):
        measure_kl(tiny_subject, [additive(tiny_subject.dictionary, "clt/0/7", 1e38)], measured, observer=QUIET)


class Stopped:
    """Stops at once."""

    def notify(self, event: Event) -> None:
        """Drop the event."""

    def should_stop(self) -> bool:
        return True


def test_it_stops_when_asked(tiny_subject: Subject, measured: Scales) -> None:
    dictionary = tiny_subject.dictionary
    with pytest.raises(Interrupted):
        measure_kl(tiny_subject, [additive(dictionary, "clt/0/7", 1)], measured, observer=Stopped())
    with pytest.raises(Interrupted):
        calibrate(tiny_subject, [additive(dictionary, "clt/0/7", 1, unit=KL)], measured, observer=Stopped())


def in_kl(subject: Subject) -> list[Treatment]:
    dictionary = subject.dictionary
    return [
        additive(dictionary, "clt/0/7", 0.5, unit=KL),
        additive(dictionary, "clt/0/7", 0.1, unit=KL),
        additive(dictionary, "clt/0/7", -0.1, unit=KL, positions=Positions.GENERATED),
        additive(dictionary, "clt/0/7", 0.1, unit=KL, layers=(0,)),
        additive(dictionary, "clt/1/7", 1e-4, unit=KL),
        additive(dictionary, "random/4@clt/0/9", 0.3, unit=KL),
    ]


@pytest.fixture(scope="module")
def calibrated(tiny_subject: Subject, measured: Scales) -> Scales:
    return calibrate(tiny_subject, in_kl(tiny_subject), measured, observer=QUIET)


def test_a_calibrated_strength_has_its_divergence(tiny_subject: Subject, measured: Scales, calibrated: Scales) -> None:
    treatments = in_kl(tiny_subject)
    found = measure_kl(tiny_subject, treatments, calibrated, observer=QUIET)
    np.testing.assert_allclose(found, [abs(each.strength) for each in treatments], rtol=0.01)
    np.testing.assert_allclose(
        [brute_force(tiny_subject, each, calibrated) for each in treatments[:3]], [abs(each.strength) for each in treatments[:3]], rtol=0.01
    )
    activations = [strength_activation(tiny_subject.dictionary, each, calibrated) for each in treatments]
    assert [activation > 0 for activation in activations] == [each.strength > 0 for each in treatments]
    assert activations[0] > activations[1] > 0
    assert (calibrated.residual_norm, calibrated.max_activation) == (measured.residual_norm, measured.max_activation)


def test_calibrating_again_gives_the_same_and_measures_nothing_that_is_known(
    tiny_subject: Subject, measured: Scales, calibrated: Scales, monkeypatch: pytest.MonkeyPatch
) -> None:
    treatments = in_kl(tiny_subject)
    assert calibrate(tiny_subject, treatments, measured, observer=QUIET).kl == calibrated.kl
    monkeypatch.setattr(doses, "divergences", None)
    moved = [replace(each, positions=Positions.PROMPT, attention=Attention.FROZEN) for each in treatments]
    others = [additive(tiny_subject.dictionary, "clt/0/7", 0.5), additive(tiny_subject.dictionary, "clt/0/7", 0, unit=KL)]
    assert calibrate(tiny_subject, [*moved, *others], calibrated, observer=QUIET).kl == calibrated.kl


def test_a_divergence_that_no_strength_reaches_is_refused(tiny_subject: Subject, measured: Scales) -> None:
    treatment = additive(tiny_subject.dictionary, "clt/0/7", 1e6, unit=KL)
    at = [additive(tiny_subject.dictionary, "clt/0/7", 2.0**power) for power in range(-6, 7)]
    most = max(measure_kl(tiny_subject, at, measured, observer=QUIET))
    with pytest.raises(UsageError, match=f"up to 64 residual units the largest divergence is {most:.3g} nats"):
        calibrate(tiny_subject, [treatment], measured, observer=QUIET)


def test_a_divergence_that_is_jumped_over_is_refused(tiny_subject: Subject, measured: Scales, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(subject: Subject, treatments: list[Treatment], scales: Scales, **_: object) -> np.ndarray:
        residual = [to_unit(subject.dictionary, each, scales, RESIDUAL).strength for each in treatments]
        return np.array([0.25 if each < 0.3 else 0.75 for each in residual])

    monkeypatch.setattr(doses, "divergences", steps)
    with pytest.raises(UsageError, match="jumps from 0.25 to 0.75 nats at 0.3 residual units"):
        calibrate(tiny_subject, [additive(tiny_subject.dictionary, "clt/0/7", 0.5, unit=KL)], measured, observer=QUIET)


def test_a_search_goes_on_where_logits_are_not_finite(tiny_subject: Subject, measured: Scales, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaking(subject: Subject, treatments: list[Treatment], scales: Scales, **_: object) -> np.ndarray:
        residual = [-to_unit(subject.dictionary, each, scales, RESIDUAL).strength for each in treatments]
        return np.array([each**2 if each < 3 else np.inf for each in residual])

    monkeypatch.setattr(doses, "divergences", breaking)
    treatment = additive(tiny_subject.dictionary, "clt/0/7", -8.0, unit=KL)
    found = calibrate(tiny_subject, [treatment], measured, observer=QUIET)
    assert to_unit(tiny_subject.dictionary, treatment, found, RESIDUAL).strength == pytest.approx(-math.sqrt(8), rel=0.0025)


def test_doses_are_one_strength_in_every_unit(tiny_subject: Subject, calibrated: Scales) -> None:
    dictionary = tiny_subject.dictionary
    feature = FeatureId("clt", 0, 7)
    largest, norm = calibrated.max_of(feature), float(dictionary.decoder(feature).norm())
    treatments = [additive(dictionary, "clt/0/7", -0.5, unit=unit) for unit in (RESIDUAL, MAX, ABSOLUTE)] + in_kl(tiny_subject)[:1]
    activations = [-0.5 * calibrated.residual_norm[0] / norm, -0.5 * largest, -0.5, calibrated.kl[0].activation]
    found = doses_of(tiny_subject, treatments, calibrated, observer=QUIET)
    for each, activation in zip(found, activations, strict=True):
        assert each.absolute == pytest.approx(activation, rel=1e-6)
        assert each.max_activation == pytest.approx(activation / largest, rel=1e-6)
        assert each.residual == pytest.approx(activation * norm / calibrated.residual_norm[0], rel=1e-6)
    assert (found[0].residual, found[1].max_activation, found[2].absolute) == (-0.5, -0.5, -0.5)
    assert found[3].absolute == calibrated.kl[0].activation
    assert tuple(each.kl for each in found) == measure_kl(tiny_subject, treatments, calibrated, observer=QUIET)


def test_a_dose_in_the_treatments_own_unit_is_its_strength(tiny_subject: Subject, measured: Scales) -> None:
    strengths = [k / 10 for k in range(1, 21)]
    of = {unit: [additive(tiny_subject.dictionary, "clt/0/7", each, unit=unit) for each in strengths] for unit in (RESIDUAL, MAX)}
    assert [each.residual for each in doses_of(tiny_subject, of[RESIDUAL], measured, observer=QUIET)] == strengths
    assert [each.max_activation for each in doses_of(tiny_subject, of[MAX], measured, observer=QUIET)] == strengths


def test_units_without_a_meaning_have_no_dose(tiny_subject: Subject, measured: Scales, firing: FeatureId) -> None:
    dictionary = tiny_subject.dictionary
    silent = replace(measured, max_activation=tuple(np.zeros_like(layer) for layer in measured.max_activation))
    treatments = [
        additive(dictionary, "clt/0/7", 2, unit=ABSOLUTE),
        clamp(dictionary, str(firing), 2),
        multiplicative(dictionary, str(firing), 2),
        ablate(dictionary, str(firing)),
    ]
    added, held, multiplied, ablated = doses_of(tiny_subject, treatments, measured, observer=QUIET)
    kl = measure_kl(tiny_subject, treatments, measured, observer=QUIET)
    assert None not in (added.residual, added.max_activation, added.absolute)
    expected = 2 / measured.max_of(firing)
    assert held == Doses(residual=None, max_activation=pytest.approx(expected, rel=1e-6), absolute=2.0, kl=kl[1])
    assert multiplied == Doses(residual=None, max_activation=None, absolute=None, kl=kl[2])
    assert ablated == Doses(residual=None, max_activation=None, absolute=None, kl=kl[3])
    never = doses_of(tiny_subject, treatments, silent, observer=QUIET)
    assert [each.max_activation for each in never] == [None] * 4
    assert [each.absolute for each in never] == [2.0, 2.0, None, None]
    (zero,) = doses_of(tiny_subject, [additive(dictionary, "clt/0/7", 0)], measured, observer=QUIET)
    assert zero == Doses(residual=0.0, max_activation=0.0, absolute=0.0, kl=0.0)


def test_a_random_directions_doses_are_those_of_its_feature_but_for_the_divergence(tiny_subject: Subject, measured: Scales) -> None:
    both = [additive(tiny_subject.dictionary, name, 0.5) for name in ("clt/0/7", "random/0@clt/0/7")]
    own, random = doses_of(tiny_subject, both, measured, observer=QUIET)
    assert (random.residual, own.residual) == (0.5, 0.5)
    assert random.max_activation == pytest.approx(own.max_activation, rel=1e-6)
    assert random.absolute == pytest.approx(own.absolute, rel=1e-6)
    assert random.kl != own.kl


def a_plan(cells: list[Cell]) -> SweepPlan:
    return SweepPlan(cells=tuple(cells), variants=(0,), samples_per_variant=1, seed=0, max_new_tokens=4, temperature=1.0)


def cell(label: str, treatment: Treatment | None, dose: Doses | None) -> Cell:
    return Cell(arm=ArmKind.CANDIDATE, prompt=PromptKind.SCENARIO, treatment=treatment, label=label, doses=dose)


def test_a_plan_has_its_calibration_back(tiny_subject: Subject, measured: Scales, calibrated: Scales) -> None:
    treatments = [
        *in_kl(tiny_subject),
        additive(tiny_subject.dictionary, "clt/0/7", 0.5),
        additive(tiny_subject.dictionary, "clt/0/7", 0, unit=KL),
    ]
    found = doses_of(tiny_subject, treatments, calibrated, observer=QUIET)
    made = a_plan([cell("none", None, None), *(cell(str(k), *each) for k, each in enumerate(zip(treatments * 2, found * 2, strict=True)))])
    read = identity.load(SweepPlan, identity.dump(made))
    again = scales_of(measured, read)
    assert again.kl == calibrated.kl
    assert scales_of(calibrated, read).kl == calibrated.kl
    for each in treatments:
        own, other = (direction_of(tiny_subject.dictionary, each, scales) for scales in (calibrated, again))
        assert all(torch.equal(own[layer], other[layer]) for layer in own)


def test_a_plan_that_was_not_calibrated_is_refused(tiny_subject: Subject, measured: Scales) -> None:
    treatment = in_kl(tiny_subject)[0]
    for lacking in (None, Doses(residual=None, max_activation=None, absolute=None, kl=0.5)):
        with pytest.raises(UsageError, match="'seven' .* does not say which activation"):
            scales_of(measured, a_plan([cell("seven", treatment, lacking)]))


def test_the_unit_converts_to_and_from_the_others_through_the_calibration(
    tiny_subject: Subject, measured: Scales, calibrated: Scales
) -> None:
    dictionary, treatment = tiny_subject.dictionary, in_kl(tiny_subject)[2]
    assert calibrated.kl[2] == Calibrated(direction="clt/0/7", layers=(0, 1, 2), strength=-0.1, activation=calibrated.kl[2].activation)
    for unit in (RESIDUAL, MAX, ABSOLUTE):
        other = to_unit(dictionary, treatment, calibrated, unit)
        assert other.strength < 0
        assert to_unit(dictionary, other, calibrated, KL) == treatment
    with pytest.raises(UsageError, match="no strength in the unit 'kl' was calibrated at this activation.*measure_kl"):
        to_unit(dictionary, additive(dictionary, "clt/0/7", 0.123), calibrated, KL)
    with pytest.raises(UsageError, match=r"add -0.1 kl clt/0/7 @0-2 generated.*doses\.calibrate.*doses\.scales_of"):
        direction_of(dictionary, treatment, measured)
    for unlike in (replace(treatment, strength=-0.2), replace(treatment, layers=(1,)), replace(treatment, direction="clt/0/8")):
        with pytest.raises(UsageError, match="Not calibrated"):
            direction_of(dictionary, unlike, calibrated)


def test_a_feature_that_writes_nothing_cannot_be_calibrated(
    tiny_subject: Subject, measured: Scales, with_tensors: Callable[..., Dictionary], dense_of: Callable[[Dictionary], Any]
) -> None:
    empty = with_tensors(tiny_subject.dictionary, W_dec=[torch.zeros_like(weights) for weights in dense_of(tiny_subject.dictionary).W_dec])
    with pytest.raises(UsageError, match="writes nothing"):
        calibrate(replace(tiny_subject, dictionary=empty), [additive(empty, "clt/0/7", 0.1, unit=KL)], measured, observer=QUIET)
