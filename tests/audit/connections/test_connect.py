"""The step on a real tiny model: its numbers against the model's own norm modules, and its targets described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import audit.connections
from audit.candidates import describe
from audit.connections import connect
from audit.errors import Interrupted
from audit.events import Event, SilentObserver, StepProgress
from audit.records import DownstreamConnections, FeatureId
from audit.records.connections import ConnectionFlag
from audit.subject import Dictionary, Subject, TokenActivations, observe


@pytest.fixture
def activations(tiny_subject: Subject) -> TokenActivations:
    return observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus)


@pytest.fixture
def candidates(tiny_subject: Subject, activations: TokenActivations) -> list[FeatureId]:
    """Two of layer 0 and one of layer 1 that fire most, not in the order of their layers."""

    def busiest(layer: int, place: int) -> FeatureId:
        return FeatureId(tiny_subject.dictionary.kind, layer, int(np.argsort(-activations.counts(layer), kind="stable")[place]))

    return [busiest(0, 0), busiest(1, 0), busiest(0, 1)]


@pytest.fixture
def connections(tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations) -> DownstreamConnections:
    return connect(tiny_subject, candidates, activations, support=1, observer=SilentObserver())


def norm_slopes(subject: Subject, layer: int) -> list[Tensor]:
    """For every corpus document (tokens, d_model): what the layer's MLP norm multiplies its input by, read off the module itself."""
    seen: list[Tensor] = []

    def slope(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output.double() / inputs[0].double())[0])

    handle = subject.model.layer(layer).get_submodule("post_attention_layernorm").register_forward_hook(slope)
    try:
        with torch.no_grad():
            for document in subject.corpus:
                subject.model.forward(torch.tensor([document]))
    finally:
        handle.remove()
    return seen


def test_twera_equals_attribution_through_the_models_own_frozen_norm(
    tiny_subject: Subject, activations: TokenActivations, connections: DownstreamConnections, dense_of: Callable[[Dictionary], Any]
) -> None:
    """At each token, a_i·W_dec passes the norm as the model applied it there; weighted by a_j, averaged by E[a_j]."""
    dictionary, W_enc = tiny_subject.dictionary, dense_of(tiny_subject.dictionary).W_enc
    assert dictionary.input_hook == "mlp_in"
    checked = 0
    for found in connections.features:
        for edge in found.targets[:3]:
            slopes = norm_slopes(tiny_subject, edge.target.layer)
            written = dictionary.decoder(found.source)[: edge.target.layer - found.source.layer].double().sum(0)
            encoder = W_enc[edge.target.layer][edge.target.index].double()
            a_i = activations.layers[found.source.layer][:, found.source.index].toarray().ravel().astype(np.float64)
            a_j = activations.layers[edge.target.layer][:, edge.target.index].toarray().ravel().astype(np.float64)
            total = 0.0
            for t in np.flatnonzero(a_i * a_j):
                slope = slopes[activations.document[t]][activations.position[t]]
                total += a_j[t] * a_i[t] * float((written * slope) @ encoder)
            assert edge.twera == pytest.approx(total / a_j.sum(), rel=1e-4, abs=1e-7)
            checked += 1
    assert checked > 3


def test_candidates_keep_their_order_and_everything_is_counted(
    tiny_subject: Subject, candidates: list[FeatureId], connections: DownstreamConnections, activations: TokenActivations
) -> None:
    assert [found.source for found in connections.features] == candidates
    assert (connections.corpus_sha256, connections.n_tokens) == (tiny_subject.info.corpus_sha256, activations.n_tokens)
    for found in connections.features:
        assert found.n_targets == (3 - 1 - found.source.layer) * 24
        assert all(edge.target.layer > found.source.layer and edge.n_coactive >= 1 for edge in found.targets)
        assert len(found.targets) <= 32
        assert 0 <= found.n_never_coactive <= 1


def test_targets_look_like_the_features_they_are(
    tiny_subject: Subject, activations: TokenActivations, connections: DownstreamConnections
) -> None:
    for edge in connections.features[0].targets[:4]:
        seen = describe(tiny_subject, activations, edge.target)
        assert (edge.target_label, edge.target_unembeds) == (seen.label, seen.top_unembeds)
        assert edge.target_frequency == pytest.approx(seen.frequency)


def test_a_target_shared_by_candidates_is_described_once(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[FeatureId] = []

    def label(_model: object, _activations: object, feature: FeatureId) -> str:
        asked.append(feature)
        return "made"

    monkeypatch.setattr(audit.connections, "label", label)
    found = connect(tiny_subject, candidates, activations, support=1, observer=SilentObserver())
    targets = [edge.target for source in found.features for edge in (*source.targets, *source.never_coactive)]
    assert len(asked) == len(set(asked))
    assert set(asked) == set(targets)
    assert len(targets) > len(asked)


def test_dense_targets_are_flagged_and_stay(connections: DownstreamConnections) -> None:
    targets = [edge for found in connections.features for edge in found.targets]
    dense = [edge for edge in targets if edge.target_frequency > 0.1]
    assert dense
    assert [edge for edge in targets if ConnectionFlag.DENSE in edge.flags] == dense


def test_a_stop_is_heard_between_layers(tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations) -> None:
    class StopsAfterOne(SilentObserver):
        seen = 0

        def notify(self, event: Event) -> None:
            assert isinstance(event, StepProgress)
            self.seen += 1

        def should_stop(self) -> bool:
            return self.seen > 0

    observer = StopsAfterOne()
    with pytest.raises(Interrupted):
        connect(tiny_subject, candidates, activations, observer=observer)
    assert observer.seen == 1


def test_features_of_a_single_layer_have_no_targets(tiny_sae_subject: Subject) -> None:
    own = observe(tiny_sae_subject.model, tiny_sae_subject.dictionary, tiny_sae_subject.corpus)
    features = [FeatureId("sae", 1, 5), FeatureId("sae", 1, 0)]
    found = connect(tiny_sae_subject, features, own, support=1, observer=SilentObserver())
    assert [(each.source, each.targets, each.n_targets, each.n_unsupported) for each in found.features] == [
        (feature, (), 0, 0) for feature in features
    ]
    assert found.n_tokens == own.n_tokens


def test_directions_are_connected_over_layers_without_any(tiny_vector_subject: Subject) -> None:
    """Directions of layers 0 and 2 of the plain stream: V = <v_i, v_j / |v_j|>, and the stream is not divided by anything."""
    dictionary = tiny_vector_subject.dictionary
    own = observe(tiny_vector_subject.model, dictionary, tiny_vector_subject.corpus)
    features = [FeatureId("vector", 2, 1), FeatureId("vector", 0, 3)]
    last, first = connect(tiny_vector_subject, features, own, support=1, observer=SilentObserver()).features
    assert (last.targets, last.n_targets, first.n_targets) == ((), 0, 6)
    assert len(first.targets) == 6
    a_i = own.layers[0][:, 3].toarray().ravel().astype(np.float64)
    for edge in first.targets:
        virtual = float(dictionary.decoder(first.source)[0].double() @ dictionary.encoder(edge.target).double())
        a_j = own.layers[2][:, edge.target.index].toarray().ravel().astype(np.float64)
        assert edge.target.layer == 2
        assert edge.virtual_weight == pytest.approx(virtual, rel=1e-5)
        assert edge.twera == pytest.approx((a_i * a_j).sum() / a_j.sum() * virtual, rel=1e-4)
