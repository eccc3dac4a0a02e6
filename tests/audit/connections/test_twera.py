"""ERA and TWERA on made dictionaries and activations equal a double loop over tokens that reads like the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from audit.connections import virtual_weights
from audit.connections.coactivation import Coactivation, Meeting
from audit.connections.gathering import SHOWN, Strongest
from audit.connections.strongest import strongest_targets
from audit.connections.twera import layer_weights, weigh
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary, Kind, LayerWeights
from audit.subject.matrix import Matrix
from audit.subject.norms import Norm

D_MODEL = 6


@dataclass(frozen=True)
class Made:
    """A subject reduced to what connections read, with dense copies to loop over."""

    subject: Subject
    activations: TokenActivations
    gains: tuple[torch.Tensor, ...]
    dense: tuple[np.ndarray, ...]


def weights(W_enc: torch.Tensor, W_dec: torch.Tensor) -> LayerWeights:
    return LayerWeights(W_enc=Matrix(W_enc, "made"), b_enc=torch.zeros(len(W_enc)), W_dec=Matrix(W_dec, "made"))


def make(
    kind: Kind, hook: str, *, seed: int, n_layers: int = 3, widths: Sequence[int] = (4,), n_tokens: int = 25, density: float = 0.5
) -> Made:
    """Layers of the given widths, over and over; 0 for a layer without features."""
    torch_rng, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch_rng)

    layers = range(n_layers)
    wide = [widths[layer % len(widths)] for layer in layers]
    dictionary = Dictionary(
        kind=kind,
        format="made",
        n_layers=n_layers,
        d_model=D_MODEL,
        input_hook=hook,
        output_hook="mlp_out",
        sha256="0" * 64,
        path=Path("made"),
        files=(),
        layers=tuple(
            weights(normal(n, D_MODEL), normal(n, n_layers - layer if kind == "clt" else 1, D_MODEL)) if n else None
            for layer, n in enumerate(wide)
        ),
        b_dec=tuple(normal(D_MODEL) for _ in layers),
    )
    dense = tuple((rng.gamma(1, 2, (n_tokens, n)) * (rng.random((n_tokens, n)) < density)).astype(np.float32) for n in wide)
    gains = tuple(normal(D_MODEL).abs() + 0.1 for _ in layers)
    activations = TokenActivations(
        token_ids=np.arange(n_tokens, dtype=np.int32),
        document=np.zeros(n_tokens, np.int32),
        position=np.arange(n_tokens, dtype=np.int32),
        layers=tuple(sparse.csr_matrix(values) for values in dense),
        sigma=rng.uniform(0.3, 3.0, (n_tokens, n_layers)).astype(np.float32),
    )
    model = SimpleNamespace(mlp_norm=lambda layer: Norm(kind="rms", eps=1e-6, gain=gains[layer]))
    return Made(cast(Subject, SimpleNamespace(model=model, dictionary=dictionary)), activations, gains, dense)


def flow(made: Made, source: FeatureId, target_layer: int, t: int) -> float:
    """a_i(t), over the norm denominator at the target where the encoder reads a normalised stream."""
    normed = made.subject.dictionary.input_hook.startswith("mlp_in")
    return float(made.dense[source.layer][t, source.index]) / (float(made.activations.sigma[t, target_layer]) if normed else 1.0)


def brute_force(made: Made, source: FeatureId, target: FeatureId) -> tuple[float, float, float, int]:
    """V, ERA, TWERA and support of one pair, one token and one coordinate at a time."""
    dictionary = made.subject.dictionary
    virtual = 0.0
    encoder = dictionary.at(target.layer).W_enc.tensor[target.index]
    for slot, decoder in enumerate(dictionary.at(source.layer).W_dec.tensor[source.index]):
        if source.layer + slot < target.layer:
            for k in range(D_MODEL):
                gain = float(made.gains[target.layer][k]) if dictionary.input_hook == "mlp_in" else 1.0
                virtual += float(decoder[k]) * float(encoder[k]) * gain
    product = gated = target_sum = 0.0
    support = 0
    n_tokens = len(made.dense[0])
    for t in range(n_tokens):
        a_j = float(made.dense[target.layer][t, target.index])
        product += a_j * flow(made, source, target.layer, t)
        gated += flow(made, source, target.layer, t) if a_j > 0 else 0.0
        target_sum += a_j
        support += bool(a_j > 0 and flow(made, source, target.layer, t) > 0)
    expected = (product / n_tokens) / (target_sum / n_tokens) if target_sum else 0.0
    return virtual, gated / n_tokens * virtual, expected * virtual, support


subjects = st.builds(
    make,
    st.sampled_from(["clt", "plt"]),
    st.sampled_from(["resid_mid", "mlp_in", "mlp_in_unweighted"]),
    seed=st.integers(0, 2**31),
    n_layers=st.integers(2, 4),
    widths=st.sampled_from([(1,), (4,), (3, 5), (2, 0, 4), (0, 5, 1)]),
    n_tokens=st.integers(1, 25),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)


@given(subjects, st.integers(1, 12), st.data())
def test_edges_equal_a_double_loop_over_tokens(made: Made, support: int, data: st.DataObject) -> None:
    dictionary = made.subject.dictionary
    sources = data.draw(st.permutations(list(dictionary.features())))  # of several layers, in any order
    weighed = strongest_targets(made.subject, made.activations, sources, top=1000, support=support)
    found = [(each.source, each.edges, each.n_unsupported) for each in weighed]
    assert [source for source, _, _ in found] == sources
    for source, edges, n_unsupported in found:
        by_target = {edge.target: edge for edge in edges}
        later = [
            FeatureId(source.dictionary, m, j) for m in range(source.layer + 1, dictionary.n_layers) for j in range(dictionary.widths[m])
        ]
        expected = {target: brute_force(made, source, target) for target in later}
        assert set(by_target) == {target for target in later if expected[target][3] >= support}
        assert n_unsupported == sum(0 < expected[target][3] < support for target in later)
        for target, edge in by_target.items():
            virtual, era, twera, n_coactive = expected[target]
            assert edge.virtual_weight == pytest.approx(virtual, rel=1e-5, abs=1e-9)
            assert edge.era == pytest.approx(era, rel=1e-5, abs=1e-9)
            assert edge.twera == pytest.approx(twera, rel=1e-5, abs=1e-9)
            assert edge.n_coactive == n_coactive
            assert edge.target_frequency == pytest.approx(np.mean(made.dense[target.layer][:, target.index] > 0))


@given(subjects, st.data())
def test_exact_pruning_bound(made: Made, data: st.DataObject) -> None:
    """|TWERA_ij| ≤ max(a_i / sigma)·|V_ij|, because TWERA is V times a weighted mean of a_i / sigma."""
    dictionary = made.subject.dictionary
    source = data.draw(st.sampled_from(list(dictionary.features())))
    edges = strongest_targets(made.subject, made.activations, [source], top=1000, support=1)[0].edges
    for edge in edges:
        largest = max(flow(made, source, edge.target.layer, t) for t in range(len(made.dense[0])))
        assert abs(edge.twera) <= largest * abs(edge.virtual_weight) * (1 + 1e-9)


def test_top_keeps_the_largest_of_all_layers() -> None:
    made = make("clt", "mlp_in", seed=5, n_layers=4, widths=(6,), n_tokens=60)
    source = FeatureId("clt", 0, 0)
    everything = strongest_targets(made.subject, made.activations, [source], top=1000, support=3)[0].edges
    kept = strongest_targets(made.subject, made.activations, [source], top=4, support=3)[0].edges
    sizes = [abs(edge.twera) for edge in everything]
    assert sizes == sorted(sizes, reverse=True)
    assert len({edge.target.layer for edge in everything}) == 3
    assert kept == everything[:4]


@given(subjects, st.integers(1, 8), st.integers(1, 4), st.data())
def test_sources_of_several_layers_are_as_if_alone(made: Made, top: int, support: int, data: st.DataObject) -> None:
    sources = data.draw(st.lists(st.sampled_from(list(made.subject.dictionary.features())), max_size=6))  # a source may come twice
    together = strongest_targets(made.subject, made.activations, sources, top=top, support=support)
    alone = [strongest_targets(made.subject, made.activations, [source], top=top, support=support)[0] for source in sources]
    assert same(together, alone)


def same(found: Sequence[Strongest], expected: Sequence[Strongest]) -> bool:
    """But for the last digits of what is summed in float32."""
    bare = [[replace(each, typical={}) for each in side] for side in (found, expected)]
    return bare[0] == bare[1] and all(one.typical == pytest.approx(other.typical) for one, other in zip(found, expected, strict=True))


@given(subjects, st.integers(1, 8), st.integers(1, 60), st.integers(1, 60), st.data())
def test_blocks_and_panels_of_any_size_keep_the_same_targets(made: Made, top: int, block: int, panel: int, data: st.DataObject) -> None:
    """The strongest of each part are merged: neither a part nor a layer has a say in which are kept."""
    sources = data.draw(st.lists(st.sampled_from(list(made.subject.dictionary.features())), max_size=6, unique=True))
    whole = strongest_targets(made.subject, made.activations, sources, top=top, support=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(virtual_weights, "BLOCK_ELEMENTS", block)
        patch.setattr(virtual_weights, "PANEL_ELEMENTS", panel)
        parts = strongest_targets(made.subject, made.activations, sources, top=top, support=2)
    assert [[edge.target for edge in each.edges] for each in parts] == [[edge.target for edge in each.edges] for each in whole]
    assert [(each.n_unsupported, each.n_never_coactive) for each in parts] == [
        (each.n_unsupported, each.n_never_coactive) for each in whole
    ]


@given(subjects, st.integers(1, 6), st.integers(1, 4))
def test_pruning_loses_nothing(made: Made, top: int, support: int) -> None:
    """The targets kept are the largest of all that ``layer_weights`` gives, which prunes nothing."""
    dictionary = made.subject.dictionary
    for found in strongest_targets(made.subject, made.activations, list(dictionary.features()), top=top, support=support):
        everything = []
        for layer in (layer for layer in dictionary.present if layer > found.source.layer):
            weighed, coactive = layer_weights(made.subject, made.activations, [found.source], layer)
            supported = np.flatnonzero(coactive.n_coactive[0] >= support)
            everything += [(FeatureId(dictionary.kind, layer, int(j)), float(weighed.twera[0, j])) for j in supported]
        everything.sort(key=lambda pair: -abs(pair[1]))
        assert [edge.target for edge in found.edges] == [target for target, _ in everything[:top]]
        assert [edge.twera for edge in found.edges] == pytest.approx([twera for _, twera in everything[:top]], rel=1e-9)


def test_most_sums_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the source fires alike on every token, the bound is TWERA itself, and only what enters the list is summed."""
    made, summed = make("plt", "resid_mid", seed=1, n_layers=4, widths=(200,), n_tokens=60, density=1.0), []
    made.activations.layers[0].data[:] = 1.0
    sums = Meeting.sums

    def counted(self: Meeting, chosen: np.ndarray) -> object:
        summed.append(len(chosen))
        return sums(self, chosen)

    monkeypatch.setattr(Meeting, "sums", counted)
    [found] = strongest_targets(made.subject, made.activations, [FeatureId("plt", 0, 0)], top=3, support=1)
    assert len(found.edges) == 3
    assert summed[0] == 200
    assert sum(summed[1:]) < 15


def test_equal_weights_keep_the_order_of_the_targets() -> None:
    """All encoders and all activations alike: every target weighs the same."""
    made = make("plt", "resid_mid", seed=3, n_layers=3, widths=(5,), n_tokens=9, density=1.0)
    dictionary = made.subject.dictionary
    for layer in (1, 2):
        dictionary.at(layer).W_enc.tensor[:] = dictionary.at(1).W_enc.tensor[:1]
        made.activations.layers[layer].data[:] = 1.5
    [found] = strongest_targets(made.subject, made.activations, [FeatureId("plt", 0, 2)], top=7, support=1)
    assert [(edge.target.layer, edge.target.index) for edge in found.edges] == [*((1, j) for j in range(5)), (2, 0), (2, 1)]


def test_loud_targets_that_never_fire_with_the_source_are_counted() -> None:
    """Of the one loudest target in 40, counted on all later layers together."""
    made = make("plt", "resid_mid", seed=4, n_layers=3, widths=(20,), n_tokens=12, density=1.0)
    source, encoders = FeatureId("plt", 0, 0), made.subject.dictionary.at(2).W_enc.tensor
    encoders[7] = 100 * made.subject.dictionary.decoder(source)[0]
    assert strongest_targets(made.subject, made.activations, [source], top=5, support=1)[0].n_never_coactive == 0
    layer = made.activations.layers[2].tolil()
    layer[:, 7] = 0
    silent = replace(made.activations, layers=(*made.activations.layers[:2], layer.tocsr()))
    [found] = strongest_targets(made.subject, silent, [source], top=5, support=1)
    assert (found.n_never_coactive, found.never_coactive) == (1, (FeatureId("plt", 2, 7),))


@given(subjects, st.integers(2, 12))
def test_the_unsupported_are_kept_apart_by_strength(made: Made, support: int) -> None:
    source = next(made.subject.dictionary.features())
    [found] = strongest_targets(made.subject, made.activations, [source], top=1000, support=support)
    [everything] = strongest_targets(made.subject, made.activations, [source], top=1000, support=1)
    below = [edge for edge in everything.edges if edge.n_coactive < support]
    assert found.n_unsupported == len(below)
    assert found.unsupported == tuple(below[:SHOWN])
    assert found.edges == tuple(edge for edge in everything.edges if edge.n_coactive >= support)


def test_the_typical_weight_is_over_all_targets_of_the_layer() -> None:
    made = make("clt", "mlp_in", seed=6, widths=(7,), density=1.0)
    source = FeatureId("clt", 0, 1)
    [found] = strongest_targets(made.subject, made.activations, [source], top=3, support=1)
    assert sorted(found.typical) == list(range(1, made.subject.dictionary.n_layers))
    for layer, typical in found.typical.items():
        row = virtual_weights.row(made.subject.dictionary, source, layer, made.subject.model.mlp_norm(layer))
        assert typical == pytest.approx(float(row.square().mean().sqrt()), rel=1e-5)


def test_the_last_layer_feeds_nothing() -> None:
    made = make("plt", "resid_mid", seed=0)
    [found] = strongest_targets(made.subject, made.activations, [FeatureId("plt", 2, 1)], top=5, support=1)
    assert (found.source, found.edges, found.n_unsupported) == (FeatureId("plt", 2, 1), (), 0)


def test_a_target_that_never_fires_weighs_nothing() -> None:
    zeros = np.zeros((1, 1))
    silent = Coactivation(
        weighted=zeros, gated=zeros, n_coactive=zeros.astype(int), target_sum=np.zeros(1), n_firing=np.zeros(1, int), n_tokens=9
    )
    weights = weigh(np.full((1, 1), 7.0), silent)
    assert (float(weights.virtual.item()), weights.era.item(), weights.twera.item()) == (7.0, 0.0, 0.0)
