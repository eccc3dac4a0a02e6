"""The step on a real tiny model: its numbers against the model's own norm modules, and its targets described."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.candidates import describe
from audit.connections import ScenarioActivations, connect
from audit.connections.attention import through_attention
from audit.connections.output_tokens import output_edges
from audit.connections.pairs import pair_edges
from audit.errors import Interrupted, UsageError
from audit.events import Event, SilentObserver, StepProgress
from audit.records import DownstreamConnections, FeatureId, ScenarioTokens
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


def test_every_listed_target_is_described_once(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations
) -> None:
    found = connect(tiny_subject, candidates, activations, support=400, attention_tokens=100, observer=SilentObserver())
    names = ("targets", "unsupported", "never_coactive", "by_attention", "by_scenario")
    lists = [getattr(each, name) for each in found.features for name in names]
    listed = [edge.target for some in lists for edge in some]
    assert [each.feature for each in found.targets] == sorted(set(listed))
    assert len(listed) > len(found.targets)  # candidates share targets
    described = {each.feature: each for each in found.targets}
    for edge in (edge for some in lists for edge in some):
        seen = described[edge.target]
        assert (seen.label, seen.top_unembeds, seen.frequency) == (edge.target_label, edge.target_unembeds, edge.target_frequency)
        assert seen.examples
        assert seen.motor_share is not None
        assert seen.motor_share > 0


def test_every_source_has_its_output_tokens(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations, connections: DownstreamConnections
) -> None:
    found = [(each.promoted, each.suppressed) for each in connections.features]
    assert found == list(output_edges(tiny_subject, activations, candidates))
    assert all(up and down for up, down in found)


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


@pytest.fixture
def beside(tiny_subject: Subject) -> ScenarioActivations:
    """The first documents of the corpus, as if a scenario had been made of them."""
    own = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:12])
    tokens = ScenarioTokens(scenario="made", n_rollouts=12, n_tokens=own.n_tokens, tokens_sha256="0" * 64)
    return ScenarioActivations(tokens=tokens, activations=own)


def test_every_listed_connection_has_the_weights_of_every_way(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations, beside: ScenarioActivations
) -> None:
    found = connect(
        tiny_subject, candidates, activations, top=6, support=3, scenario=beside, attention_tokens=10**6, observer=SilentObserver()
    )
    flow = through_attention(tiny_subject, activations, candidates, max_tokens=10**6, observer=SilentObserver())
    assert found.scenario == beside.tokens
    assert found.attention is not None
    assert (found.attention.n_tokens, found.attention.n_documents) == (activations.n_tokens, len(tiny_subject.corpus))
    for place, each in enumerate(found.features):
        lists = (each.targets, each.unsupported, each.never_coactive, each.by_attention, each.by_scenario)
        assert len(each.by_attention) == 6
        for edge in (edge for some in lists for edge in some):
            pair = each.source, edge.target
            own, other = (pair_edges(tiny_subject, on, [pair])[pair] for on in (activations, beside.activations))
            assert (edge.virtual_weight, edge.era, edge.twera) == pytest.approx((own.virtual_weight, own.era, own.twera), rel=1e-9)
            assert (edge.scenario_twera, edge.scenario_era) == pytest.approx((other.twera, other.era), rel=1e-9)
            assert (edge.n_coactive, edge.scenario_n_coactive) == (own.n_coactive, other.n_coactive)
            [layer] = [one for one in flow.layers if one.layer == edge.target.layer]
            assert edge.through_attention == layer.whole[place, edge.target.index]
            assert edge.n_reached == layer.n_reached[place, edge.target.index]


def test_each_list_is_the_strongest_of_its_own_way(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations, beside: ScenarioActivations
) -> None:
    def weighed(top: int) -> DownstreamConnections:
        return connect(
            tiny_subject, candidates, activations, top=top, support=3, scenario=beside, attention_tokens=2000, observer=SilentObserver()
        )

    everything, strongest = weighed(100), weighed(4)
    for whole, some in zip(everything.features, strongest.features, strict=True):
        for name, weight, support in (
            ("targets", "twera", "n_coactive"),
            ("by_scenario", "scenario_twera", "scenario_n_coactive"),
            ("by_attention", "through_attention", "n_reached"),
        ):
            of_all, of_some = getattr(whole, name), getattr(some, name)
            assert len(of_some) == 4 < len(of_all)
            assert of_some == of_all[:4]
            sizes = [abs(getattr(edge, weight)) for edge in of_all]
            assert sizes == sorted(sizes, reverse=True)
            assert all(getattr(edge, support) >= 3 for edge in of_all)


def test_what_was_not_asked_for_is_not_there(connections: DownstreamConnections) -> None:
    assert (connections.attention, connections.scenario) == (None, None)
    for each in connections.features:
        assert (each.by_attention, each.by_scenario) == ((), ())
        for edge in each.targets:
            assert (edge.through_attention, edge.n_reached, edge.scenario_twera, edge.scenario_n_coactive) == (None,) * 4


def test_unsupported_targets_are_shown_apart(
    tiny_subject: Subject, candidates: list[FeatureId], activations: TokenActivations
) -> None:
    found = connect(tiny_subject, candidates, activations, support=activations.n_tokens // 2, observer=SilentObserver())
    for each in found.features:
        assert each.n_unsupported
        assert len(each.unsupported) == min(8, each.n_unsupported)
        assert all(ConnectionFlag.UNSUPPORTED in edge.flags for edge in each.unsupported)
        assert not any(ConnectionFlag.UNSUPPORTED in edge.flags for edge in each.targets)


def test_a_feature_that_is_not_there_is_refused(tiny_subject: Subject, activations: TokenActivations) -> None:
    with pytest.raises(UsageError, match="no clt/0/24"):
        connect(tiny_subject, [FeatureId("clt", 0, 24)], activations, observer=SilentObserver())
