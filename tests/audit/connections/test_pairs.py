"""Weights of chosen pairs are those that a look at all targets gives."""

from __future__ import annotations

import numpy as np
import pytest

from audit.connections.pairs import pair_edges
from audit.connections.strongest import strongest_targets
from audit.connections.twera import layer_weights
from audit.records import FeatureId
from audit.subject import Subject, observe


def test_chosen_pairs_have_the_weights_of_a_look_at_all(tiny_subject: Subject) -> None:
    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:40])
    sources = [FeatureId("clt", 0, 3), FeatureId("clt", 1, 5)]
    pairs = [(source, FeatureId("clt", layer, j)) for source in sources for layer in range(source.layer + 1, 3) for j in (0, 7, 23)]
    found = pair_edges(tiny_subject, activations, reversed(pairs))
    assert set(found) == set(pairs)
    for source, target in pairs:
        weights, coactive = layer_weights(tiny_subject, activations, [source], target.layer)
        edge, j = found[source, target], target.index
        expected = (weights.virtual[0, j], weights.era[0, j], weights.twera[0, j])
        assert np.allclose((edge.virtual_weight, edge.era, edge.twera), expected, rtol=1e-10, atol=1e-14)
        assert edge.n_coactive == coactive.n_coactive[0, j]
        assert edge.target_frequency == coactive.n_firing[j] / activations.n_tokens


def test_the_strongest_targets_have_these_weights(tiny_subject: Subject) -> None:
    activations = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:40])
    source = FeatureId("clt", 0, 3)
    [found] = strongest_targets(tiny_subject, activations, [source], top=5, support=1)
    again = pair_edges(tiny_subject, activations, [(source, edge.target) for edge in found.edges])
    assert found.edges
    for edge in found.edges:
        assert again[source, edge.target].twera == pytest.approx(edge.twera, rel=1e-12)
        assert again[source, edge.target].n_coactive == edge.n_coactive


def test_a_pair_that_does_not_fire_together_has_a_virtual_weight_alone(tiny_subject: Subject) -> None:
    nothing = observe(tiny_subject.model, tiny_subject.dictionary, [()])
    pair = FeatureId("clt", 0, 3), FeatureId("clt", 2, 4)
    edge = pair_edges(tiny_subject, nothing, [pair])[pair]
    assert edge.virtual_weight != 0
    assert (edge.era, edge.twera, edge.n_coactive, edge.target_frequency) == (0.0, 0.0, 0, 0.0)


def test_a_target_of_no_later_layer_is_refused(tiny_subject: Subject) -> None:
    nothing = observe(tiny_subject.model, tiny_subject.dictionary, [()])
    with pytest.raises(ValueError, match="not of a later layer"):
        pair_edges(tiny_subject, nothing, [(FeatureId("clt", 1, 0), FeatureId("clt", 1, 1))])


def test_no_pairs_are_no_edges(tiny_subject: Subject) -> None:
    assert pair_edges(tiny_subject, observe(tiny_subject.model, tiny_subject.dictionary, [()]), []) == {}
