"""Targets are described as candidates are, and each once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from audit.candidates.describe import describe
from audit.candidates.examples import LABEL_SOURCE, top_examples
from audit.candidates.known import NOTHING, OWN, Known
from audit.candidates.unembeds import extremes
from audit.connections import descriptors
from audit.connections.descriptors import describe_targets, unembeds
from audit.connections.motor import motor_shares
from audit.errors import Interrupted, UsageError
from audit.events import Event, SilentObserver
from audit.labels import FeatureFiles
from audit.records import Example, FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations, observe

TARGETS = [FeatureId("clt", 2, 7), FeatureId("clt", 1, 11), FeatureId("clt", 1, 3), FeatureId("clt", 2, 7)]


@pytest.fixture(scope="module")
def observed(tiny_subject: Subject) -> TokenActivations:
    """Activations on the tiny subject's corpus."""
    return observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)


def test_targets_are_described_once_by_layer_and_index(tiny_subject, observed):
    found = describe_targets(tiny_subject, observed, TARGETS, NOTHING, observer=SilentObserver())
    assert [each.feature for each in found] == sorted(set(TARGETS))
    shares = motor_shares(tiny_subject, observed, TARGETS, observer=SilentObserver())
    for each in found:
        expected = describe(tiny_subject, observed, each.feature)
        assert (each.label, each.label_source, each.frequency) == (expected.label, LABEL_SOURCE, expected.frequency)
        assert each.label
        assert each.examples == top_examples(tiny_subject, observed, each.feature, 3) == expected.top_examples[:3]
        assert len(each.examples) == 3
        for side, wanted in ((each.top_unembeds, expected.top_unembeds), (each.bottom_unembeds, expected.bottom_unembeds)):
            assert [one.token for one in side] == [one.token for one in wanted]
            assert [one.weight for one in side] == pytest.approx([one.weight for one in wanted], abs=2e-4)
        assert (each.motor_share, each.motor_tokens) == (pytest.approx(shares[each.feature][0], rel=1e-4), 8)


def test_what_others_said_comes_first(tiny_subject, observed):
    example = Example(tokens=("a", "b"), activations=(0.0, 1.0), peak=1)

    class Published:
        """Five examples of one feature."""

        def read(self, feature: FeatureId) -> SimpleNamespace | None:
            return SimpleNamespace(examples=(example,) * 5) if feature == TARGETS[0] else None

    known = Known(names={TARGETS[1]: "despair"}, published=cast(FeatureFiles, Published()))
    described = describe_targets(tiny_subject, observed, TARGETS, known, observer=SilentObserver(), n_examples=2)
    found = {each.feature: each for each in described}
    assert found[TARGETS[0]].examples == (example, example)
    assert found[TARGETS[0]].label_source == LABEL_SOURCE
    assert (found[TARGETS[1]].label, found[TARGETS[1]].label_source) == ("despair", OWN)
    assert found[TARGETS[1]].examples == top_examples(tiny_subject, observed, TARGETS[1], 2)


def test_unembeds_of_many_are_those_of_each(tiny_subject, tiny_plt_subject, tiny_sae_subject, tiny_vector_subject, monkeypatch):
    for subject in (tiny_subject, tiny_plt_subject, tiny_sae_subject, tiny_vector_subject):
        features = list(subject.dictionary.features())[::-5]
        monkeypatch.setattr(descriptors, "ELEMENTS", 3 * subject.model.vocabulary)
        found = list(unembeds(subject, features, 5))
        assert len(found) == len(features)
        for feature, sides in zip(features, found, strict=True):
            for side, wanted in zip(sides, extremes(subject, feature, 5), strict=True):
                assert [one.token for one in side] == [one.token for one in wanted]
                assert [one.weight for one in side] == pytest.approx([one.weight for one in wanted], abs=2e-4)


def test_what_does_not_reach_the_stream_by_a_linear_map_has_no_output_side(tiny_subject, observed):
    subject = replace(tiny_subject, dictionary=replace(tiny_subject.dictionary, output_hook="mlp_out_raw"))
    [found] = describe_targets(subject, observed, TARGETS[:1], NOTHING, observer=SilentObserver())
    assert (found.top_unembeds, found.bottom_unembeds, found.motor_share, found.motor_tokens) == ((), (), None, 0)
    assert found.examples


def test_no_targets_no_descriptions(tiny_subject, observed):
    assert describe_targets(tiny_subject, observed, [], NOTHING, observer=SilentObserver()) == ()


def test_a_target_that_the_dictionary_does_not_have_is_refused(tiny_subject, observed):
    with pytest.raises(UsageError, match="clt/1/99"):
        describe_targets(tiny_subject, observed, [FeatureId("clt", 1, 99)], NOTHING, observer=SilentObserver())


def test_it_stops_when_asked_to(tiny_subject, observed):
    class Watcher:
        """Stops when the first description is there."""

        steps: tuple[str, ...] = ()

        def notify(self, event: Event) -> None:
            self.steps = (*self.steps, event.step)

        def should_stop(self) -> bool:
            return "target descriptions" in self.steps

    watcher = Watcher()
    with pytest.raises(Interrupted):
        describe_targets(tiny_subject, observed, TARGETS, NOTHING, observer=watcher)
    assert watcher.steps.count("target descriptions") == 1
    assert "output side" in watcher.steps
