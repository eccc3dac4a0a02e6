"""TWERA+OV against a slow frozen forward pass written by hand, against TWERA, and on a made head whose effect is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from audit.connections import attention
from audit.connections.attention import Flow, spread, through_attention
from audit.connections.frozen import Attend, FrozenModel
from audit.connections.twera import layer_weights
from audit.errors import Interrupted, SubjectError, UsageError
from audit.events import Event, SilentObserver, StepProgress
from audit.records import FeatureId
from audit.subject import Dictionary, Subject, TokenActivations, observe

EVERYTHING = 10**9
SITES = [("resid_pre", "resid_pre"), ("resid_mid", "resid_mid"), ("resid_post", "resid_post"), ("mlp_in_unweighted", "attn_out")]


def few(subject: Subject, n_documents: int) -> tuple[Subject, TokenActivations]:
    """The subject with a shorter corpus, and what is active on it."""
    subject = replace(subject, corpus=subject.corpus[:n_documents])
    return subject, observe(subject.model, subject.dictionary, subject.corpus)


def busiest(activations: TokenActivations, dictionary: Dictionary, *places: tuple[int, int]) -> list[FeatureId]:
    """Features by (layer, rank of how often they fire)."""
    return [FeatureId(dictionary.kind, layer, int(np.argsort(-activations.counts(layer), kind="stable")[rank])) for layer, rank in places]


@pytest.fixture
def sae(tiny_subject: Subject, layer_of: Callable[..., Any], dictionary_of: Callable[..., Dictionary]) -> Callable[..., Subject]:
    """``sae(reads, writes)``: the tiny model with a random SAE of all three layers at two hook points."""

    def made(reads: str, writes: str) -> Subject:
        generator = torch.Generator().manual_seed(6)
        drawn = [torch.randn(2, 24, 16, generator=generator) for _ in range(3)]
        layers = [layer_of(W_enc, W_dec, torch.full((24,), -1.0)) for W_enc, W_dec in drawn]
        return replace(tiny_subject, dictionary=dictionary_of("sae", layers, d_model=16, hooks=(reads, writes)))

    return made


def restricted(activations: TokenActivations, rows: np.ndarray) -> TokenActivations:
    return TokenActivations(
        token_ids=activations.token_ids[rows],
        document=activations.document[rows],
        position=activations.position[rows],
        layers=tuple(layer[rows] for layer in activations.layers),
        sigma=activations.sigma[rows],
    )


def assert_direct_is_twera(subject: Subject, max_tokens: int = EVERYTHING) -> Flow:
    subject, activations = few(subject, 20)
    sources = busiest(activations, subject.dictionary, *[(layer, rank) for layer in subject.dictionary.present for rank in (1, 0, 5)])
    found = through_attention(subject, activations, sources, max_tokens=max_tokens, observer=SilentObserver())
    same = restricted(activations, found.rows)
    assert [each.layer for each in found.layers] == [layer for layer in subject.dictionary.present if layer > sources[0].layer]
    for each in found.layers:
        for source, direct, whole in zip(sources, each.direct, each.whole, strict=True):
            if source.layer >= each.layer:
                assert not direct.any()
                assert not whole.any()
                continue
            weights, coactive = layer_weights(subject, same, [source], each.layer)
            np.testing.assert_allclose(direct, weights.twera[0], rtol=1e-5, atol=1e-6 * np.abs(weights.twera).max())
            np.testing.assert_allclose(each.target_sum, coactive.target_sum)
            np.testing.assert_array_equal(each.n_firing, coactive.n_firing)
            assert np.abs(direct).max() > 0
            assert np.abs(whole - direct).max() > 1e-3 * np.abs(direct).max()
    return found


def test_without_attention_a_cross_layer_transcoder_has_twera(tiny_subject: Subject) -> None:
    found = assert_direct_is_twera(tiny_subject)
    assert (found.n_documents, found.n_tokens) == (20, len(found.rows))


def test_without_attention_per_layer_transcoders_have_twera(tiny_plt_subject: Subject) -> None:
    assert_direct_is_twera(tiny_plt_subject)


def test_without_attention_the_tokens_used_have_twera(tiny_subject: Subject) -> None:
    found = assert_direct_is_twera(tiny_subject, max_tokens=150)
    assert 100 < found.n_tokens <= 150
    assert 1 < found.n_documents < 20


@pytest.mark.parametrize(("reads", "writes"), SITES)
def test_without_attention_an_sae_has_twera(sae: Callable[..., Subject], reads: str, writes: str) -> None:
    assert_direct_is_twera(sae(reads, writes))


def test_without_attention_directions_over_layers_without_any_have_twera(tiny_vector_subject: Subject) -> None:
    found = assert_direct_is_twera(tiny_vector_subject)
    assert [each.layer for each in found.layers] == [2]


# --- the whole, by hand ---------------------------------------------------------------------------


@dataclass
class Hand:
    """A Llama's forward pass on one document, from its weights, in float64; the second pass on is frozen."""

    subject: Subject
    document: tuple[int, ...]

    def __post_init__(self) -> None:
        self.state = {name: weight.double() for name, weight in self.subject.model.hf.state_dict().items()}
        self.patterns: dict[int, Tensor] = {}
        self.sigmas: dict[str, Tensor] = {}
        self.mlps: dict[int, Tensor] = {}
        self.plain = self.read({})

    def weight(self, layer: int, name: str) -> Tensor:
        return self.state[f"model.layers.{layer}.{name}.weight"]

    def normalised(self, layer: int, name: str, x: Tensor) -> Tensor:
        sigma = self.sigmas.setdefault(f"{layer}.{name}", (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
        return x / sigma

    def pattern(self, layer: int, x: Tensor) -> Tensor:
        """(2, tokens, tokens) of two heads of size 8."""
        q, k = (torch.stack((x @ self.weight(layer, f"self_attn.{name}_proj").T).split(8, dim=-1)) for name in "qk")
        angle = torch.arange(len(x)).double()[:, None] * 10000.0 ** (-torch.arange(4).double() / 4)
        q, k = (
            torch.cat([y[..., :4] * angle.cos() - y[..., 4:] * angle.sin(), y[..., 4:] * angle.cos() + y[..., :4] * angle.sin()], dim=-1)
            for y in (q, k)
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(8)
        ahead = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return scores.masked_fill(ahead, -torch.inf).softmax(-1)

    def attended(self, layer: int, x: Tensor) -> Tensor:
        x = self.normalised(layer, "input_layernorm", x) * self.weight(layer, "input_layernorm")
        if layer not in self.patterns:
            self.patterns[layer] = self.pattern(layer, x)
        v = torch.stack((x @ self.weight(layer, "self_attn.v_proj").T).split(8, dim=-1))
        return torch.cat(list(self.patterns[layer] @ v), dim=-1) @ self.weight(layer, "self_attn.o_proj").T

    def mlp(self, layer: int, x: Tensor) -> Tensor:
        if layer not in self.mlps:
            gate, up = (x @ self.weight(layer, f"mlp.{name}_proj").T for name in ("gate", "up"))
            self.mlps[layer] = (torch.nn.functional.silu(gate) * up) @ self.weight(layer, "mlp.down_proj").T
        return self.mlps[layer]

    def read(self, written: Mapping[int, Tensor]) -> list[Tensor]:
        """Pre-activations (tokens, F) of every layer, when (tokens, d_model) is written to the output hook point of some layers."""
        dictionary = self.subject.dictionary
        x = self.state["model.embed_tokens.weight"][list(self.document)]
        found = []
        for layer in range(3):
            points: dict[str, Tensor] = {}

            def put(name: str, value: Tensor, layer: int = layer, points: dict[str, Tensor] = points) -> Tensor:
                changed = value + written[layer] if name == dictionary.output_hook and layer in written else value
                points[name] = changed
                return changed

            x = put("resid_pre", x)
            out = put("attn_out", self.attended(layer, x))
            x = put("resid_mid", x + out)
            unweighted = put("mlp_in_unweighted", self.normalised(layer, "post_attention_layernorm", x))
            put("mlp_in", unweighted * self.weight(layer, "post_attention_layernorm"))
            out = put("mlp_out", self.mlp(layer, points["mlp_in"]))
            x = put("resid_post", x + out)
            if dictionary.layers[layer] is not None:
                W_enc = dictionary.at(layer).W_enc.rows(slice(None)).double()
                found.append(points[dictionary.input_hook] @ W_enc.T)
        return found


def by_brute_force(subject: Subject, activations: TokenActivations, source: FeatureId) -> dict[int, np.ndarray]:
    """Layer → (F,) TWERA+OV: one frozen forward pass for every position at which the source fires."""
    decoder = subject.dictionary.decoder(source).double()
    products = {layer: np.zeros(24) for layer in range(3)}
    totals = {layer: np.zeros(24) for layer in range(3)}
    for number, document in enumerate(subject.corpus):
        rows = np.flatnonzero(activations.document == number)
        positions = activations.position[rows]
        a = [activations.layers[layer][rows].toarray().astype(np.float64) for layer in range(3)]
        hand = Hand(subject, document)
        for layer in range(3):
            totals[layer] += a[layer].sum(0)
        for at, p in zip(a[source.layer][:, source.index], positions, strict=True):
            if at > 0:
                written = {source.layer + m: torch.zeros(len(document), 16, dtype=torch.float64) for m in range(len(decoder))}
                for m, vector in enumerate(decoder):
                    written[source.layer + m][p] = at * vector
                for layer, moved in enumerate(hand.read(written)):
                    change = (moved - hand.plain[layer]).numpy()
                    assert not change[:p].any()
                    products[layer] += (a[layer] * change[positions]).sum(0)
    return {layer: np.divide(products[layer], totals[layer], out=np.zeros(24), where=totals[layer] > 0) for layer in range(3)}


def assert_whole(subject: Subject) -> None:
    subject, activations = few(subject, 3)
    sources = busiest(activations, subject.dictionary, (1, 1), (0, 0), (0, 2), (1, 0), (2, 0))
    found = through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver())
    assert [each.layer for each in found.layers] == [1, 2]
    for row, source in enumerate(sources):
        expected = by_brute_force(subject, activations, source)
        for each in found.layers:
            if source.layer < each.layer:
                scale = np.abs(expected[each.layer]).max()
                assert scale > 0
                np.testing.assert_allclose(each.whole[row], expected[each.layer], rtol=1e-4, atol=2e-6 * scale)


def test_the_whole_of_a_cross_layer_transcoder_equals_brute_force(tiny_subject: Subject) -> None:
    assert_whole(tiny_subject)


def test_the_whole_of_per_layer_transcoders_equals_brute_force(tiny_plt_subject: Subject) -> None:
    assert_whole(tiny_plt_subject)


@pytest.mark.parametrize(("reads", "writes"), SITES)
def test_the_whole_of_an_sae_equals_brute_force(sae: Callable[..., Subject], reads: str, writes: str) -> None:
    assert_whole(sae(reads, writes))


@pytest.fixture(params=["gpt2", "gemma2"])
def other(
    request: pytest.FixtureRequest, tiny_subject: Subject, layer_of: Callable[..., Any], dictionary_of: Callable[..., Any]
) -> Subject:
    """Another family, with random per-layer transcoders: GPT-2 centres in its norms, Gemma 2 has a norm behind attention."""
    vocabulary = tiny_subject.model.vocabulary
    if request.param == "gpt2":
        hf: Any = GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=16, n_layer=3, n_head=2, n_inner=24, n_positions=256))
    else:
        sizes = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12, "sliding_window": 5}
        hf = Gemma2ForCausalLM(
            Gemma2Config(vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=3, **sizes)  # type: ignore[arg-type]
        )
    for parameter in hf.eval().requires_grad_(False).parameters():
        parameter.copy_(0.3 * torch.randn_like(parameter) + (1.0 if parameter.ndim == 1 else 0.0))
    drawn = [torch.randn(2, 24, 16) for _ in range(3)]
    layers = [layer_of(W_enc, W_dec, torch.full((24,), -1.0)) for W_enc, W_dec in drawn]
    model = replace(tiny_subject.model, hf=hf, architecture=request.param, _norms={})
    return replace(tiny_subject, model=model, dictionary=dictionary_of("plt", layers, d_model=16))


def test_without_attention_other_families_have_twera(other: Subject) -> None:
    assert_direct_is_twera(other)


def test_other_families_read_what_is_pushed_through_their_own_norm(other: Subject) -> None:
    """The whole, one position after the other: the frozen pass of ``test_frozen``, then the encoder's norm with its real denominator."""
    subject, activations = few(other, 2)
    (source,) = busiest(activations, subject.dictionary, (0, 0))
    (found, last) = through_attention(subject, activations, [source], max_tokens=EVERYTHING, observer=SilentObserver()).layers
    products = {1: np.zeros(24), 2: np.zeros(24)}
    for number, document in enumerate(subject.corpus):
        rows = np.flatnonzero(activations.document == number)
        fired = activations.layers[0][rows].toarray()[:, source.index]
        for p in np.flatnonzero(fired):
            change = torch.zeros(1, len(document), 16)
            change[0, activations.position[rows[p]]] = float(fired[p]) * subject.dictionary.decoder(source)[0]

            def visit(layer: int, attend: Attend, rows: np.ndarray = rows) -> None:
                nonlocal change
                if layer == 0:
                    return
                change = change + attend(change)
                norm = subject.model.mlp_norm(layer)
                seen = (
                    norm.centred(change[0, activations.position[rows]]) * norm.gain / torch.tensor(activations.sigma[rows, layer])[:, None]
                )
                moved = (seen.double() @ subject.dictionary.at(layer).W_enc.rows(slice(None)).double().T).numpy()
                products[layer] += (activations.layers[layer][rows].toarray() * moved).sum(0)

            FrozenModel(subject.model).run(document, visit)
    for each in (found, last):
        expected = np.divide(products[each.layer], each.target_sum, out=np.zeros(24), where=each.target_sum > 0)
        np.testing.assert_allclose(each.whole[0], expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


# --- a head that is known -------------------------------------------------------------------------

CONSTANT, READ, WRITTEN, MOVED = 0, 1, 5, 6
"""Coordinates of the stream: always 1; the token that the source reads; what the source writes; what the head writes for either."""
GAIN = 1.5
"""What the head multiplies by."""


def previous_token_subject(
    tiny_subject: Subject, layer_of: Callable[..., Any], dictionary_of: Callable[..., Dictionary]
) -> tuple[Subject, tuple[tuple[int, ...], ...]]:
    """Two layers without MLPs; the only head, in the second, copies two coordinates from the position before to a third."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=4, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1, head_dim=4,
        rms_norm_eps=1e-12, max_position_embeddings=32, tie_word_embeddings=False,
    )  # fmt: skip
    hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in hf.named_parameters():
        weight.fill_(1.0 if "norm" in name else 0.0)
    embedding = hf.model.embed_tokens.weight
    embedding[:, CONSTANT] = 1.0
    for token, coordinate in enumerate((4, READ, 2, 3)):  # every token has a length of √2, which the norm brings to √8
        embedding[token, coordinate] = 1.0
    head: Any = hf.model.layers[1].self_attn
    # Keys are those of the constant turned by one position: of all positions, the score is largest one back.
    head.q_proj.weight[0, CONSTANT] = 50.0
    head.k_proj.weight[0, CONSTANT] = 50.0 * math.cos(1.0)
    head.k_proj.weight[2, CONSTANT] = 50.0 * math.sin(1.0)
    head.v_proj.weight[1, READ] = head.v_proj.weight[1, WRITTEN] = 1.0
    head.o_proj.weight[MOVED, 1] = GAIN
    unit = torch.eye(8)
    layers = [layer_of(unit[[READ, 2]], unit[[WRITTEN, WRITTEN]]), layer_of(unit[[MOVED, READ]], unit[[7, 7]])]
    dictionary = dictionary_of("plt", layers, d_model=8)
    model = replace(tiny_subject.model, hf=hf, n_layers=2, d_model=8, vocabulary=8, special_ids=frozenset({0}), opening_ids=(), _norms={})
    documents = ((0, 2, 1, 3, 2), (0, 3, 1, 2, 3, 2))
    return replace(tiny_subject, model=model, dictionary=dictionary, corpus=documents), documents


def test_a_previous_token_head_is_found_where_twera_sees_nothing(
    tiny_subject: Subject, layer_of: Callable[..., Any], dictionary_of: Callable[..., Dictionary]
) -> None:
    """The source fires on token 1; the target on the token behind it, never together, and V between them is 0."""
    subject, documents = previous_token_subject(tiny_subject, layer_of, dictionary_of)
    activations = observe(subject.model, subject.dictionary, documents)
    target = activations.layers[1].toarray()[:, 0]
    assert [(int(activations.document[t]), int(activations.position[t])) for t in np.flatnonzero(target)] == [(0, 3), (1, 3)]
    sources = [FeatureId("plt", 0, 0), FeatureId("plt", 0, 1)]
    (found,) = through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver()).layers
    # The stream at q is (1, …, 1, …, 2·GAIN): what the norm at p doubled, copied.
    doubled, sigma = 2.0, math.sqrt((2 + (2 * GAIN) ** 2) / 8)
    a_source = 2.0
    assert found.direct[0, 0] == 0
    assert found.whole[0, 0] == pytest.approx(a_source * doubled * GAIN / sigma, rel=1e-5)
    weights, _ = layer_weights(subject, activations, sources, 1)
    assert not weights.twera[:, 0].any()
    # The second source writes the same, on token 2, but the target never fires one behind that.
    assert found.whole[1, 0] == pytest.approx(0, abs=1e-6)
    assert found.n_reached.tolist() == [[2, 2], [2, 1]]


# --- which tokens, and how they are split ---------------------------------------------------------


def test_the_result_does_not_depend_on_how_sources_and_tokens_are_split(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, activations = few(tiny_subject, 6)
    sources = busiest(activations, subject.dictionary, (0, 0), (1, 0), (0, 3), (0, 1))
    whole = through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver())
    monkeypatch.setattr(attention, "STREAM_ELEMENTS", 1)
    monkeypatch.setattr(attention, "READ_ELEMENTS", 5 * 24 * 16)
    monkeypatch.setattr(attention, "DOT_ELEMENTS", 1)
    again = through_attention(subject, activations, sources[::-1], max_tokens=EVERYTHING, observer=SilentObserver())
    for one, other in zip(whole.layers, again.layers, strict=True):
        np.testing.assert_allclose(other.whole[::-1], one.whole, rtol=1e-5, atol=1e-6 * np.abs(one.whole).max())
        np.testing.assert_array_equal(other.n_reached[::-1], one.n_reached)


def test_the_same_call_gives_the_same_numbers_and_leaves_the_model_as_it_was(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 6)
    ids = torch.tensor([subject.corpus[0]])
    before, how = subject.model.forward(ids), subject.model.hf.config._attn_implementation
    sources = busiest(activations, subject.dictionary, (0, 0), (1, 0))
    one, other = (through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver()) for _ in range(2))
    assert all(np.array_equal(a.whole, b.whole) for a, b in zip(one.layers, other.layers, strict=True))
    assert torch.equal(subject.model.forward(ids), before)
    assert subject.model.hf.config._attn_implementation == how


def test_tokens_reached_are_counted_from_where_the_source_first_fires(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 6)
    sources = busiest(activations, subject.dictionary, (0, 2), (1, 4))
    found = through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver())
    for each in found.layers:
        fires = activations.layers[each.layer].toarray() > 0
        for row, source in enumerate(sources):
            a = activations.layers[source.layer].toarray()[:, source.index]
            expected = np.zeros(24, dtype=int)
            for t, document in enumerate(activations.document):
                if source.layer < each.layer and a[: t + 1][activations.document[: t + 1] == document].any():
                    expected += fires[t]
            np.testing.assert_array_equal(each.n_reached[row], expected)


def test_a_source_that_does_nothing_weighs_nothing(tiny_subject: Subject, with_tensors: Callable[..., Dictionary]) -> None:
    """One never fires; the other fires and writes zeros."""
    subject, activations = few(tiny_subject, 4)
    silent, mute = busiest(activations, subject.dictionary, (0, 0), (0, 1))
    W_dec = [subject.dictionary.at(layer).W_dec.rows(slice(None)).clone() for layer in range(3)]
    W_dec[0][mute.index] = 0
    columns = activations.layers[0].toarray()
    columns[:, silent.index] = 0
    activations = replace(activations, layers=(sparse.csr_matrix(columns), *activations.layers[1:]))
    subject = replace(subject, dictionary=with_tensors(subject.dictionary, W_dec=W_dec))
    found = through_attention(subject, activations, [silent, mute], max_tokens=EVERYTHING, observer=SilentObserver())
    assert not any(each.direct.any() or each.whole.any() for each in found.layers)
    assert not any(each.n_reached[0].any() for each in found.layers)
    assert all(each.n_reached[1].any() for each in found.layers)


def test_what_is_written_at_several_positions_adds_up(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 2)
    (source,) = busiest(activations, subject.dictionary, (0, 0))
    columns = activations.layers[0].toarray()
    fired = np.flatnonzero(columns[:, source.index])
    assert len(fired) > 2

    def alone(rows: np.ndarray) -> list[np.ndarray]:
        some = np.zeros_like(columns)
        some[rows, source.index] = columns[rows, source.index]
        own = replace(activations, layers=(sparse.csr_matrix(some), *activations.layers[1:]))
        found = through_attention(subject, own, [source], max_tokens=EVERYTHING, observer=SilentObserver())
        return [each.whole for each in found.layers]

    for total, parts in zip(alone(fired), zip(*(alone(fired[[k]]) for k in range(len(fired))), strict=True), strict=True):
        np.testing.assert_allclose(np.sum(parts, axis=0), total, rtol=1e-4, atol=1e-6 * np.abs(total).max())


def test_documents_used_are_whole_evenly_spread_and_no_more_than_allowed(tiny_subject: Subject) -> None:
    _, activations = few(tiny_subject, 60)
    assert np.array_equal(np.concatenate(spread(activations, EVERYTHING)), np.arange(activations.n_tokens))
    allowed = activations.n_tokens // 4
    used = spread(activations, allowed)
    assert allowed * 0.8 < sum(len(rows) for rows in used) <= allowed
    documents = [int(activations.document[rows[0]]) for rows in used]
    assert all(np.array_equal(rows, np.flatnonzero(activations.document == number)) for rows, number in zip(used, documents, strict=True))
    assert max(np.diff([-1, *documents, 60])) <= 8
    assert len(spread(activations, 1)) == 1


def test_other_documents_than_the_corpus_are_named(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 5)
    sources = busiest(activations, subject.dictionary, (0, 0))
    elsewhere = replace(subject, corpus=tiny_subject.corpus[7:10])
    with pytest.raises(ValueError, match="not the one that was observed"):
        through_attention(elsewhere, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver())
    found = through_attention(elsewhere, activations, sources, max_tokens=EVERYTHING, documents=subject.corpus, observer=SilentObserver())
    expected = through_attention(subject, activations, sources, max_tokens=EVERYTHING, observer=SilentObserver())
    assert all(np.array_equal(one.whole, other.whole) for one, other in zip(found.layers, expected.layers, strict=True))


def test_what_has_no_virtual_weight_is_refused(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 1)
    subject = replace(subject, dictionary=replace(subject.dictionary, output_hook="mlp_out_raw"))
    with pytest.raises(SubjectError, match="mlp_out_raw"):
        through_attention(subject, activations, [FeatureId("clt", 0, 0)], max_tokens=1, observer=SilentObserver())


def test_a_wrong_call_is_refused(tiny_subject: Subject) -> None:
    subject, activations = few(tiny_subject, 1)
    with pytest.raises(UsageError, match="At most 0 tokens"):
        through_attention(subject, activations, [FeatureId("clt", 0, 0)], max_tokens=0, observer=SilentObserver())
    with pytest.raises(UsageError, match="clt/0/24"):
        through_attention(subject, activations, [FeatureId("clt", 0, 24)], max_tokens=1, observer=SilentObserver())


def test_a_stop_is_heard_between_documents(tiny_subject: Subject) -> None:
    class StopsAfterTwo(SilentObserver):
        seen = 0

        def notify(self, event: Event) -> None:
            progress = cast(StepProgress, event)
            assert (progress.step, progress.done, progress.total) == ("attention", self.seen, 5)
            self.seen += 1

        def should_stop(self) -> bool:
            return self.seen == 2

    subject, activations = few(tiny_subject, 5)
    observer = StopsAfterTwo()
    with pytest.raises(Interrupted):
        through_attention(subject, activations, [FeatureId("clt", 0, 0)], max_tokens=EVERYTHING, observer=observer)
    assert observer.seen == 2
