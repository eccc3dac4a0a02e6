"""V, ERA and TWERA equal what their definitions say, written out as loops over tokens, sources, targets and coordinates.

Everything here is plain Python in double precision and knows nothing of how the weights are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from audit.connections.strongest import strongest_targets
from audit.connections.twera import Edge, layer_weights
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary, Kind, LayerWeights
from audit.subject.formats import directions
from audit.subject.matrix import Matrix
from audit.subject.norms import Kind as NormKind
from audit.subject.norms import norm_of
from audit.subject.shape import ModelShape

Rows = list[list[float]]
NORMS: dict[str, NormKind] = {"llama": "rms", "gemma2": "rms_plus_one", "gpt2": "layer"}
NORMED = ("mlp_in", "mlp_in_unweighted")
HOOKS = {
    "plt": [("mlp_in", "mlp_out"), ("mlp_in_unweighted", "mlp_out"), ("resid_mid", "mlp_out"), ("resid_post", "resid_post")],
    "clt": [("mlp_in", "mlp_out"), ("mlp_in_unweighted", "mlp_out"), ("resid_mid", "mlp_out"), ("resid_post", "resid_post")],
    "sae": [("resid_pre", "resid_pre"), ("resid_mid", "resid_mid"), ("resid_post", "resid_post")],
    "vector": [("resid_pre", "resid_pre"), ("resid_mid", "resid_mid"), ("resid_post", "resid_post")],
}
"""Kind → hook points that it reads and writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a made subject is like."""

    kind: Kind
    family: str
    hooks: tuple[str, str]
    widths: tuple[int, ...]
    """Features a layer; 0 where the dictionary has none."""
    d_model: int
    n_tokens: int
    density: float
    even: bool
    """Whether features fire alike wherever they fire, so that TWERA is close to its bound."""
    scaled: str
    """What stored rows are multiplied by: ``none``, ``rows`` or ``all``."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Expected weights of a source and a target."""

    virtual: float
    era: float
    twera: float
    n_coactive: int
    frequency: float


class Made:
    """A subject reduced to what connections read, with plain lists of all that it is made of."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.rng = sizes, np.random.default_rng(sizes.seed)
        n_layers, d = len(sizes.widths), sizes.d_model
        self.encoders, self.decoders, layers = [], [], []
        for layer, width in enumerate(sizes.widths):
            n_out = n_layers - layer if sizes.kind == "clt" else 1
            W_enc, W_dec = self.matrix(width, d), self.matrix(width, n_out, d)
            layers.append(LayerWeights(W_enc=W_enc, b_enc=torch.zeros(width), W_dec=W_dec) if width else None)
            self.encoders.append(rows_of(W_enc))
            self.decoders.append([rows_of(Matrix(one, "made")) for one in scaled(W_dec)])
        self.modules = [SimpleNamespace(weight=torch.from_numpy(self.normal(d)), eps=1e-6) for _ in range(n_layers)]
        self.dense = [self.activations_of(width) for width in sizes.widths]
        self.sigma = self.rng.uniform(0.3, 3.0, (sizes.n_tokens, n_layers + 1)).astype(np.float32)
        count = np.arange(sizes.n_tokens, dtype=np.int32)
        self.activations = TokenActivations(
            token_ids=count, document=np.zeros_like(count), position=count, layers=tuple(map(stored, self.dense)), sigma=self.sigma
        )
        dictionary = Dictionary(
            kind=sizes.kind, format="made", n_layers=n_layers, d_model=d, input_hook=sizes.hooks[0], output_hook=sizes.hooks[1],
            path=Path("made"), files=(), layers=tuple(layers), b_dec=(None,) * n_layers,
        )  # fmt: skip
        kind = NORMS[sizes.family]
        model = SimpleNamespace(mlp_norm=lambda layer: norm_of(cast(torch.nn.Module, self.modules[layer]), kind))
        self.subject = cast(Subject, SimpleNamespace(model=model, dictionary=dictionary))

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.normal(size=shape).astype(np.float32)

    def matrix(self, *shape: int) -> Matrix:
        """Stored in float32, or in bfloat16 beside a factor a row or one for all."""
        values = torch.from_numpy(self.normal(*shape))
        if self.sizes.scaled == "none":
            return Matrix(values, "made")
        shape = shape[:1] if self.sizes.scaled == "rows" else ()
        scale = torch.from_numpy(np.asarray(self.rng.uniform(0.01, 9.0, shape), dtype=np.float32))
        return Matrix(values.bfloat16(), "made", scale)

    def activations_of(self, width: int) -> np.ndarray:
        """(n_tokens, width): each feature on its own share of the tokens, a fifth of them on none."""
        share = self.sizes.density * self.rng.uniform(0.5, 1.5, width) * (self.rng.random(width) > 0.2)
        fires = self.rng.random((self.sizes.n_tokens, width)) < share
        strength = np.ones(fires.shape) if self.sizes.even else self.rng.gamma(0.5, 4.0, fires.shape)
        return (strength * fires).astype(np.float32)

    def expected(self, source: FeatureId, target: FeatureId) -> Pair:
        """By the definitions."""
        virtual, flows = self.virtual(source, target), self.flows(source, target.layer)
        a_j = [float(value) for value in self.dense[target.layer][:, target.index]]
        product = gated = total = 0.0
        n_coactive = n_firing = 0
        for t in range(self.sizes.n_tokens):
            product += a_j[t] * flows[t]
            gated += flows[t] if a_j[t] > 0 else 0.0
            total += a_j[t]
            n_coactive += a_j[t] > 0 and flows[t] > 0
            n_firing += a_j[t] > 0
        n = self.sizes.n_tokens
        twera = (product / n) / (total / n) * virtual if total else 0.0
        return Pair(virtual=virtual, era=gated / n * virtual, twera=twera, n_coactive=n_coactive, frequency=n_firing / n)

    def virtual(self, source: FeatureId, target: FeatureId) -> float:
        """<sum of the decoders to layers before the target's, encoder>, centred and with the gain where the encoder reads behind them."""
        written = [0.0] * self.sizes.d_model
        for slot, decoder in enumerate(self.decoders[source.layer][source.index]):
            if source.layer + slot < target.layer:
                written = [a + b for a, b in zip(written, decoder, strict=True)]
        hook = self.sizes.hooks[0]
        if hook in NORMED and self.sizes.family == "gpt2":
            written = [value - sum(written) / len(written) for value in written]
        weight = [float(value) for value in self.modules[target.layer].weight]
        gain = [float(np.float32(1 + value)) for value in weight] if self.sizes.family == "gemma2" else weight
        gain = gain if hook == "mlp_in" else [1.0] * len(written)
        encoder = self.encoders[target.layer][target.index]
        return sum(written[k] * gain[k] * encoder[k] for k in range(len(written)))

    def flows(self, source: FeatureId, target_layer: int) -> list[float]:
        """a_i(t), over the norm denominator of the target's layer where that is divided by."""
        a_i = [float(value) for value in self.dense[source.layer][:, source.index]]
        if self.sizes.hooks[0] not in NORMED:
            return a_i
        return [value / float(self.sigma[t, target_layer]) for t, value in enumerate(a_i)]

    def targets(self, source: FeatureId) -> list[FeatureId]:
        """Every feature of every later layer."""
        layers = range(source.layer + 1, len(self.sizes.widths))
        return [FeatureId(source.dictionary, layer, j) for layer in layers for j in range(self.sizes.widths[layer])]


def scaled(matrix: Matrix) -> torch.Tensor:
    """What a matrix stands for, in float32."""
    wide = matrix.tensor.float()
    return wide if matrix.scale is None else wide * matrix.scale.reshape(-1, *[1] * (wide.ndim - 1))


def rows_of(matrix: Matrix) -> Rows:
    return [[float(value) for value in row] for row in scaled(matrix)]


def stored(dense: np.ndarray) -> sparse.csr_matrix:
    """Sparse, with a few zeros that are stored all the same."""
    found = sparse.coo_matrix(dense)
    spare = np.argwhere(dense == 0)[::7]
    rows, columns = np.concatenate([found.row, spare[:, 0]]), np.concatenate([found.col, spare[:, 1]])
    return sparse.csr_matrix((np.concatenate([found.data, np.zeros(len(spare), np.float32)]), (rows, columns)), shape=dense.shape)


def made_of(kind: Kind) -> st.SearchStrategy[Made]:
    """Subjects with a dictionary of that kind."""
    widths = st.lists(st.one_of(st.just(0), st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=4).filter(any)
    sizes = st.builds(
        Sizes,
        kind=st.just(kind),
        family=st.sampled_from(sorted(NORMS)),
        hooks=st.sampled_from(HOOKS[kind]),
        widths=widths.map(tuple),
        d_model=st.integers(1, 8),
        n_tokens=st.integers(1, 30),
        density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
        even=st.booleans(),
        scaled=st.sampled_from(["none", "rows", "all"]),
        seed=st.integers(0, 2**31),
    )
    return sizes.map(Made)


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-5, abs=1e-11)


def assert_right(edge: Edge, expected: Pair) -> None:
    assert edge.virtual_weight == near(expected.virtual)
    assert edge.era == near(expected.era)
    assert edge.twera == near(expected.twera)
    assert edge.n_coactive == expected.n_coactive
    assert edge.target_frequency == pytest.approx(expected.frequency)


def assert_strongest(edges: Sequence[Edge], some: dict[FeatureId, Pair], top: int) -> None:
    """The edges are right, in order, as many as there can be, and none of the others is stronger."""
    assert len(edges) == len({edge.target for edge in edges}) == min(top, len(some))
    for edge in edges:
        assert edge.target in some
        assert_right(edge, some[edge.target])
    sizes = [abs(edge.twera) for edge in edges]
    assert sizes == sorted(sizes, reverse=True)
    others = [abs(pair.twera) for target, pair in some.items() if target not in {edge.target for edge in edges}]
    assert all(other <= sizes[-1] * (1 + 1e-9) + 1e-11 for other in others)


@pytest.mark.parametrize("kind", ["plt", "clt", "sae", "vector"])
@settings(max_examples=100)
@given(data=st.data())
def test_the_strongest_targets_are_those_of_the_double_loop(kind: Kind, data: st.DataObject) -> None:
    """Every edge is right, and no stronger one with enough support is missing."""
    made = data.draw(made_of(kind))
    features = list(made.subject.dictionary.features())
    sources = data.draw(st.lists(st.sampled_from(features), min_size=1, max_size=5))
    top, support = data.draw(st.sampled_from([1, 3, 8, 100])), data.draw(st.sampled_from([1, 2, 5, 20]))
    found = strongest_targets(made.subject, made.activations, sources, top=top, support=support)
    assert [each.source for each in found] == sources
    for each in found:
        pairs = {target: made.expected(each.source, target) for target in made.targets(each.source)}
        assert_strongest(each.edges, {target: pair for target, pair in pairs.items() if pair.n_coactive >= support}, top)
        below = {target: pair for target, pair in pairs.items() if 0 < pair.n_coactive < support}
        assert each.n_unsupported == len(below)
        assert_strongest(each.unsupported, below, 8)


@pytest.mark.parametrize("kind", ["plt", "clt", "sae", "vector"])
@settings(max_examples=50)
@given(data=st.data())
def test_all_weights_between_two_layers_are_those_of_the_double_loop(kind: Kind, data: st.DataObject) -> None:
    made = data.draw(made_of(kind).filter(lambda made: len(made.subject.dictionary.present) > 1))
    own, target_layer = sorted(data.draw(st.permutations(made.subject.dictionary.present))[:2])
    indices = data.draw(st.lists(st.integers(0, made.sizes.widths[own] - 1), min_size=1, max_size=4))
    sources = [FeatureId(kind, own, index) for index in indices]
    weighed, coactive = layer_weights(made.subject, made.activations, sources, target_layer)
    for row, source in enumerate(sources):
        for j in range(made.sizes.widths[target_layer]):
            expected = made.expected(source, FeatureId(kind, target_layer, j))
            assert weighed.virtual[row, j] == near(expected.virtual)
            assert weighed.era[row, j] == near(expected.era)
            assert weighed.twera[row, j] == near(expected.twera)
            assert coactive.n_coactive[row, j] == expected.n_coactive


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), top=st.integers(1, 6))
def test_products_that_float32_cannot_tell_apart_are_ranked_as_in_float64(seed: int, top: int) -> None:
    """What the encoders have in common is ten million times what tells them apart, and orthogonal to what the source writes."""
    made = Made(
        Sizes(kind="plt", family="llama", hooks=("resid_mid", "mlp_out"), widths=(1, 12, 12), d_model=8, n_tokens=9, density=2.0, even=True,
              scaled="none", seed=seed)
    )  # fmt: skip
    source = FeatureId("plt", 0, 0)
    written = made.subject.dictionary.decoder(source)[0].double()
    for layer in (1, 2):
        rows = made.subject.dictionary.at(layer).W_enc.tensor
        common = torch.from_numpy(made.normal(8)).double()
        common -= (common @ written) / (written @ written) * written
        rows += (1e7 * common).float()
        made.encoders[layer] = rows_of(Matrix(rows, "made"))
    [found] = strongest_targets(made.subject, made.activations, [source], top=top, support=1)
    pairs = {target: made.expected(source, target) for target in made.targets(source)}
    assert_strongest(found.edges, {target: pair for target, pair in pairs.items() if pair.n_coactive}, top)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), top=st.integers(1, 4), hooks=st.sampled_from([("resid_mid", "mlp_out"), ("mlp_in", "mlp_out")]))
def test_targets_of_later_layers_that_reach_their_bound_are_kept(seed: int, top: int, hooks: tuple[str, str]) -> None:
    """Features fire alike and nearly always, so that |TWERA| is close to max(a_i)·|V|: a bound below that would lose some."""
    sizes = Sizes(
        kind="clt",
        family="gpt2",
        hooks=hooks,
        widths=(2, 12, 12, 12),
        d_model=5,
        n_tokens=9,
        density=2.0,
        even=True,
        scaled="rows",
        seed=seed,
    )
    made = Made(sizes)
    source = FeatureId("clt", 0, 1)
    [found] = strongest_targets(made.subject, made.activations, [source], top=top, support=2)
    pairs = {target: made.expected(source, target) for target in made.targets(source)}
    assert_strongest(found.edges, {target: pair for target, pair in pairs.items() if pair.n_coactive >= 2}, top)


def of_one(source: np.ndarray, target: np.ndarray) -> tuple[Subject, TokenActivations]:
    """One feature in each of two layers, V = 1, with these activations."""
    one = LayerWeights(W_enc=Matrix(torch.ones(1, 1), "made"), b_enc=torch.zeros(1), W_dec=Matrix(torch.ones(1, 1, 1), "made"))
    dictionary = Dictionary(
        kind="plt", format="made", n_layers=2, d_model=1, input_hook="resid_mid", output_hook="mlp_out", path=Path("made"), files=(),
        layers=(one, one), b_dec=(None, None),
    )  # fmt: skip
    count = np.arange(len(source), dtype=np.int32)
    layers = tuple(sparse.csr_matrix(side.astype(np.float32)[:, None]) for side in (source, target))
    activations = TokenActivations(
        token_ids=count, document=count, position=count, layers=layers, sigma=np.ones((len(count), 3), dtype=np.float32)
    )
    return cast(Subject, SimpleNamespace(model=None, dictionary=dictionary)), activations


def both_ways(subject: Subject, activations: TokenActivations) -> list[tuple[float, float, int]]:
    """ERA, TWERA and support, as listed and as given between the layers."""
    source = FeatureId("plt", 0, 0)
    [found] = strongest_targets(subject, activations, [source], top=1, support=1)
    weighed, coactive = layer_weights(subject, activations, [source], 1)
    listed = (found.edges[0].era, found.edges[0].twera, found.edges[0].n_coactive)
    return [listed, (float(weighed.era[0, 0]), float(weighed.twera[0, 0]), int(coactive.n_coactive[0, 0]))]


def test_many_tokens_are_counted_to_the_last() -> None:
    """Sums of 100,001 small numbers: float16 overflows, bfloat16 stands still at 256, float32 is off in the fourth digit."""
    n, tenth = 100_001, float(np.float32(0.1))
    for era, twera, n_coactive in both_ways(*of_one(np.full(n, 0.1), np.full(n, 0.1))):
        assert n_coactive == n
        assert era == pytest.approx(tenth, rel=1e-9)
        assert twera == pytest.approx(tenth, rel=1e-9)


def test_small_activations_behind_a_large_one_are_not_lost() -> None:
    """2^24 + 1 is 2^24 in float32: of the ones that follow, none would be added."""
    target = np.ones(1001)
    target[0] = 2.0**24
    source = np.full(1001, 3.0)
    source[0] = 2.0**24
    for era, twera, n_coactive in both_ways(*of_one(source, target)):
        assert n_coactive == 1001
        assert era == pytest.approx((2**24 + 3000) / 1001, rel=1e-12)
        assert twera == pytest.approx((2**48 + 3000) / (2**24 + 1000), rel=1e-12)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), norm=st.sampled_from(["as_is", "unit"]))
def test_a_direction_fires_by_its_projection_and_writes_its_vector(seed: int, norm: directions.Norm) -> None:
    """TWERA of directions, from the stream that they read: a = max(0, <x, v / |v|>), written as stored or at length 1."""
    torch_rng = torch.Generator().manual_seed(seed)
    vectors, x = 3 * torch.randn(3, 5, generator=torch_rng), torch.randn(2, 12, 5, generator=torch_rng)
    chosen = [directions.Direction(layer=layer, values=vectors[k], label=str(k), norm=norm) for k, layer in enumerate((0, 1, 1))]
    shape = ModelShape(architecture="llama", n_layers=2, d_model=5, d_heads=5)
    source = directions.Source(path=Path("made"), files=(), format="made", made_from="made")
    dictionary = directions.dictionary_of(chosen, shape, hook="resid_post", source=source)
    count = np.arange(12, dtype=np.int32)
    activations = TokenActivations(
        token_ids=count, document=count, position=count, sigma=np.ones((12, 3), dtype=np.float32),
        layers=tuple(sparse.csr_matrix(dictionary.encode(layer, x[layer]).numpy()) for layer in range(2)),
    )  # fmt: skip
    subject = cast(Subject, SimpleNamespace(model=None, dictionary=dictionary))
    weighed, _ = layer_weights(subject, activations, [FeatureId("vector", 0, 0)], 1)
    v = [[float(value) for value in vector] for vector in vectors]
    length = [sum(value * value for value in vector) ** 0.5 for vector in v]

    def fires(k: int, layer: int, t: int) -> float:
        return max(0.0, sum(float(a) * b for a, b in zip(x[layer, t], v[k], strict=True)) / length[k])

    for place, k in enumerate((1, 2)):
        virtual = sum(a * b for a, b in zip(v[0], v[k], strict=True)) / length[k] / (length[0] if norm == "unit" else 1.0)
        product = sum(fires(0, 0, t) * fires(k, 1, t) for t in range(12))
        total = sum(fires(k, 1, t) for t in range(12))
        gated = sum(fires(0, 0, t) for t in range(12) if fires(k, 1, t) > 0)
        assert weighed.virtual[0, place] == pytest.approx(virtual, rel=1e-5, abs=1e-6)
        assert weighed.twera[0, place] == pytest.approx(product / total * virtual if total else 0.0, rel=1e-4, abs=1e-6)
        assert weighed.era[0, place] == pytest.approx(gated / 12 * virtual, rel=1e-4, abs=1e-6)
