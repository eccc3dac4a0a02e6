"""Output tokens as targets equal a double loop over tokens and sources, on several architectures."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from audit.candidates import unembeds
from audit.connections import output_tokens
from audit.connections.output_tokens import arriving, output_edges
from audit.errors import UsageError
from audit.organism.lexicon import load_lexicon
from audit.organism.tokenizer import build_tokenizer
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations, content_batches, observe
from audit.subject.architecture import architecture_of
from audit.subject.hookpoints import resolve_write
from audit.subject.model import LanguageModel, open_model

GPT2 = GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3)
GEMMA2 = Gemma2Config(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    max_position_embeddings=64, initializer_range=0.3, final_logit_softcapping=3.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
FAMILIES = {"gpt2": (GPT2LMHeadModel, GPT2), "gemma2": (Gemma2ForCausalLM, GEMMA2)}


@pytest.fixture(scope="module")
def families(tmp_path_factory, layer_of, dictionary_of, tiny_subject, tiny_plt_subject, tiny_sae_subject, tiny_vector_subject):
    """Subjects by name: the tiny one with each kind of dictionary, and other architectures whose norms and biases are random."""
    torch.manual_seed(11)
    found = {"llama clt": tiny_subject, "llama plt": tiny_plt_subject, "llama sae": tiny_sae_subject, "llama vector": tiny_vector_subject}
    for name, (kind, config) in FAMILIES.items():
        folder, hf = tmp_path_factory.mktemp(name), kind(config)
        for parameter in hf.parameters():
            if parameter.dim() == 1:
                parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
        hf.save_pretrained(folder)
        build_tokenizer(load_lexicon("office")).save_pretrained(folder)
        layers = [layer_of(torch.randn(5, 16), torch.randn(5, 3 - layer, 16), -2 * torch.ones(5)) for layer in range(3)]
        rng = np.random.default_rng(5)
        corpus = tuple((1, *(int(token) for token in rng.integers(3, 40, size=n))) for n in (0, 1, 7, 20, 20, 30, 31))
        made = dictionary_of("clt", layers, d_model=16)
        found[name] = replace(tiny_subject, model=open_model(folder), dictionary=made, corpus=corpus)
    return found


def seen(subject: Subject) -> TokenActivations:
    """Activations on the subject's corpus."""
    return observe(subject.model, subject.dictionary, subject.corpus)


def next_tokens(model: LanguageModel, corpus: tuple[tuple[int, ...], ...]) -> dict[tuple[int, int], int | None]:
    """(document, position) of every content token → the content token that comes next, or None."""
    content = {
        (d, p): ids[p]
        for d, ids in enumerate(corpus)
        if ids
        for p in torch.nonzero(model.content_mask(torch.tensor([ids]))[0]).flatten().tolist()
    }
    return {(d, p): content.get((d, p + 1)) for d, p in content}


def parts(model: LanguageModel) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Copies of the final norm and the unembedding, in float64."""
    norm = {"llama": "norm", "gpt2": "ln_f", "gemma2": "norm"}[model.architecture]
    return deepcopy(model.backbone.get_submodule(norm)).double(), deepcopy(model.hf.get_output_embeddings()).double()


def gain_of(model: LanguageModel) -> Tensor:
    norm, _ = parts(model)
    return 1 + norm.weight if model.architecture == "gemma2" else norm.weight


def by_hand(subject: Subject, activations: TokenActivations, source: FeatureId, token: int) -> tuple[float, float, float, int, float]:
    """V, ERA, TWERA, support and frequency of one pair: one token of the corpus at a time."""
    model = subject.model
    total = [0.0] * 16
    for decoder in subject.dictionary.decoder(source).tolist():
        total = [a + b for a, b in zip(total, decoder, strict=True)]
    if model.architecture == "gpt2":
        mean = sum(total) / 16
        total = [a - mean for a in total]
    _, head = parts(model)
    virtual = sum(a * g * u for a, g, u in zip(total, gain_of(model).tolist(), head.weight[token].tolist(), strict=True))
    following = next_tokens(model, subject.corpus)
    a_i = dict(zip(*(side.tolist() for side in activations.column(source.layer, source.index)), strict=True))
    flow, n_next, n_coactive = 0.0, 0, 0
    for t in range(activations.n_tokens):
        if following[int(activations.document[t]), int(activations.position[t])] == token:
            n_next += 1
            n_coactive += a_i.get(t, 0.0) > 0
            flow += a_i.get(t, 0.0) / float(activations.sigma[t, -1])
    n_tokens = len(following)
    return virtual, flow / n_tokens * virtual, (flow / n_next * virtual if n_next else 0.0), n_coactive, n_next / n_tokens


@pytest.mark.parametrize("name", ["llama clt", "llama plt", "llama sae", "llama vector", *FAMILIES])
def test_output_edges_equal_a_double_loop_over_tokens_and_sources(families, name):
    subject = families[name]
    activations, vocabulary = seen(subject), subject.model.vocabulary
    sources = list(subject.dictionary.features())[:: 1 + subject.dictionary.n_features // 4][::-1]
    found = output_edges(subject, activations, sources, top=vocabulary if vocabulary == 40 else 5)
    coactive = 0
    for source, (promoted, suppressed) in zip(sources, found, strict=True):
        direction = arriving(subject, [source])[0]
        centred = direction - direction.mean() if subject.model.architecture == "gpt2" else direction
        virtual = parts(subject.model)[1].weight @ (centred * gain_of(subject.model))
        order = sorted(range(vocabulary), key=lambda token: -float(virtual[token]))
        assert [edge.token for edge in promoted] == order[: len(promoted)]
        assert [edge.token for edge in suppressed] == order[::-1][: len(suppressed)]
        for edge in (*promoted, *suppressed):
            expected = by_hand(subject, activations, source, edge.token)
            assert (edge.virtual_weight, edge.era, edge.twera) == pytest.approx(expected[:3], rel=1e-5, abs=1e-9)
            assert (edge.n_coactive, edge.frequency) == expected[3:]
            assert edge.text == "".join(subject.model.token_texts([edge.token]))
            coactive += edge.n_coactive
    assert coactive > 0


def test_of_every_feature_the_outermost_tokens_are_kept(tiny_subject):
    model, sources = tiny_subject.model, list(tiny_subject.dictionary.features())
    found = output_edges(tiny_subject, seen(tiny_subject), sources, top=20)
    virtual = arriving(tiny_subject, sources) * gain_of(model) @ parts(model)[1].weight.T
    for row, pair in zip(virtual, found, strict=True):
        order = torch.argsort(row).tolist()
        assert [[edge.token for edge in side] for side in pair] == [order[::-1][:20], order[:20]]


@pytest.mark.parametrize("name", ["llama clt", *FAMILIES])
def test_v_over_sigma_is_what_the_logit_changes_by_with_the_denominator_frozen(families, name):
    """The model's own norm and unembedding on the final stream, with and without the source's output, divided by the same sigma."""
    subject, source = families[name], FeatureId("clt", 1, 2)
    model, activations = subject.model, seen(families[name])
    (row, *_), (a_i, *_) = activations.column(1, 2)
    document, position, site = int(activations.document[row]), int(activations.position[row]), (2, "resid_post")
    (batch,) = content_batches(model, [subject.corpus[document]], [site])
    x = batch.values[site][batch.position.tolist().index(position)].double()
    stepped = x + 1e-3 * float(a_i) * subject.dictionary.decoder(source).double().sum(0)
    norm, head = parts(model)
    bias = getattr(norm, "bias", None)
    bias = torch.zeros(16) if bias is None else bias

    def sigma(y: Tensor) -> Tensor:
        return model.final_norm.denominator(y)

    with torch.inference_mode():
        frozen = (norm(stepped).double() - bias) * (sigma(stepped) / sigma(x)).double() + bias
        change = head(frozen.double()) - head(norm(x).double())
    assert float(sigma(x)) == pytest.approx(float(activations.sigma[row, -1]), rel=1e-5)
    [(promoted, suppressed)] = output_edges(subject, activations, [source], top=4)
    for edge in (*promoted, *suppressed):
        expected = 1e-3 * edge.virtual_weight * float(a_i) / float(activations.sigma[row, -1])
        assert float(change[edge.token]) == pytest.approx(expected, rel=2e-3)


def test_neither_chunks_of_sources_nor_blocks_of_the_vocabulary_have_a_say(tiny_subject, monkeypatch):
    activations, sources = seen(tiny_subject), [*list(tiny_subject.dictionary.features())[::7], FeatureId("clt", 0, 0)]
    whole = output_edges(tiny_subject, activations, sources)
    monkeypatch.setattr(output_tokens, "ELEMENTS", 2 * tiny_subject.model.vocabulary)
    monkeypatch.setattr(output_tokens, "BLOCK_ELEMENTS", 16 * 37)
    assert output_edges(tiny_subject, activations, sources) == whole
    assert whole[-1] == whole[0]
    assert all(len(side) == 8 for pair in whole for side in pair)
    assert output_edges(tiny_subject, activations, []) == ()


def test_a_token_that_never_comes_next_has_v_alone(tiny_subject):
    activations = seen(tiny_subject)
    alone = np.flatnonzero(activations.following() < 0)
    cut = TokenActivations(
        token_ids=activations.token_ids[alone],
        document=activations.document[alone],
        position=activations.position[alone],
        layers=tuple(sparse.csr_matrix(layer[alone]) for layer in activations.layers),
        sigma=activations.sigma[alone],
    )
    source = FeatureId("clt", 0, 3)
    [(promoted, _)], [(full, _)] = (output_edges(tiny_subject, each, [source]) for each in (cut, activations))
    assert [(edge.token, edge.virtual_weight) for edge in promoted] == [(edge.token, edge.virtual_weight) for edge in full]
    assert {(edge.era, edge.twera, edge.n_coactive, edge.frequency) for edge in promoted} == {(0.0, 0.0, 0, 0.0)}


@pytest.mark.parametrize("memory", [1, None])
def test_weights_outside_the_device_are_brought_to_it(tiny_subject, tiny_model_dir, memory):
    """All of them on disk, or half."""
    cpu = memory or 4 * tiny_subject.model.n_parameters // 2
    offloaded = replace(tiny_subject, model=open_model(tiny_model_dir, device="auto", max_memory={"cpu": cpu}))
    assert offloaded.model.hf.lm_head.weight.is_meta
    activations, sources = seen(tiny_subject), [FeatureId("clt", 0, 0), FeatureId("clt", 2, 5)]
    assert output_edges(offloaded, activations, sources) == output_edges(tiny_subject, activations, sources)


def test_the_bias_of_the_unembedding_is_no_effect_of_a_source(tiny_subject):
    model = replace(tiny_subject.model, hf=deepcopy(tiny_subject.model.hf))
    model.hf.lm_head.bias = torch.nn.Parameter(3 * torch.randn(model.vocabulary), requires_grad=False)
    activations, sources = seen(tiny_subject), [FeatureId("clt", 0, 0)]
    assert output_edges(replace(tiny_subject, model=model), activations, sources) == output_edges(tiny_subject, activations, sources)


def test_a_narrow_model_is_multiplied_in_float32(tiny_subject, tiny_model_dir):
    """V comes from the weights as bfloat16 has them, not from products that it rounded."""
    model = open_model(tiny_model_dir, dtype="bfloat16")
    subject, source = replace(tiny_subject, model=model), FeatureId("clt", 0, 0)
    [(promoted, _)] = output_edges(subject, seen(tiny_subject), [source], top=3)
    total = subject.dictionary.decoder(source).double().sum(0) * model.hf.model.norm.weight.double()
    virtual = model.hf.lm_head.weight.double() @ total
    assert [edge.virtual_weight for edge in promoted] == pytest.approx(virtual.topk(3).values.tolist(), rel=1e-9)


def test_heads_reach_the_stream_through_the_output_projection_of_the_layer_that_they_write_to(tiny_subject, dictionary_of, layer_of):
    layers = [layer_of(torch.randn(4, 16), torch.randn(4, 3 - layer, 16)) for layer in range(3)]
    subject = replace(tiny_subject, dictionary=dictionary_of("clt", layers, d_model=16, hooks=("resid_mid", "attn_z")))
    found = arriving(subject, [FeatureId("clt", 1, 3)])
    decoder = subject.dictionary.decoder(FeatureId("clt", 1, 3))
    expected = sum(resolve_write(subject.model, 1 + k, "attn_z").module.weight @ decoder[k] for k in range(2))
    torch.testing.assert_close(found[0].float(), expected)


def test_what_does_not_reach_the_stream_by_a_linear_map_has_no_output_tokens(tiny_subject, dictionary_of, layer_of, monkeypatch):
    for hook in ("mlp_out_raw", "attn_z"):
        made = dictionary_of("sae", [None, layer_of(torch.randn(4, 16), torch.randn(4, 16)), None], d_model=16, hooks=(hook, hook))
        subject, sources = replace(tiny_subject, dictionary=made), [FeatureId("sae", 1, 0), FeatureId("sae", 1, 2)]
        monkeypatch.setattr(unembeds, "architecture_of", lambda name: architecture_of("gemma2"))
        assert arriving(subject, sources) is None
        assert output_edges(subject, seen(tiny_subject), sources) == (((), ()), ((), ()))


def test_a_source_that_the_dictionary_does_not_have_is_refused(tiny_subject):
    with pytest.raises(UsageError, match="clt/2/99"):
        output_edges(tiny_subject, seen(tiny_subject), [FeatureId("clt", 2, 99)])
