"""The motor share is what a plain forward pass gives with the feature's own output taken out of the final residual stream."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from audit.connections import motor
from audit.connections.motor import motor_shares, output_of, spread
from audit.errors import Interrupted, UsageError
from audit.events import Event, SilentObserver, StepProgress
from audit.organism.lexicon import load_lexicon
from audit.organism.tokenizer import build_tokenizer
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations, content_batches, observe
from audit.subject.hookpoints import resolve_write, rewrite
from audit.subject.model import LanguageModel, open_model

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8, "patch_size": 4}
TEXT = Gemma3TextConfig(**SIZES)
FAMILIES = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.3)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, final_logit_softcapping=3.0)),
    "gemma3": (
        Gemma3ForConditionalGeneration,
        Gemma3Config(text_config=TEXT.to_dict(), vision_config=VISION, mm_tokens_per_image=4, image_token_index=39),
    ),
}


@pytest.fixture(scope="module")
def families(tmp_path_factory, layer_of, dictionary_of, tiny_subject, tiny_sae_subject, tiny_vector_subject):
    """Subjects by name: the tiny ones, and other architectures whose norms and biases are random."""
    torch.manual_seed(12)
    found = {"llama": tiny_subject, "sae": tiny_sae_subject, "vector": tiny_vector_subject}
    for name, (kind, config) in FAMILIES.items():
        folder, hf = tmp_path_factory.mktemp(name), kind(config)
        for parameter in hf.parameters():
            if parameter.dim() == 1:
                parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
        hf.save_pretrained(folder)
        build_tokenizer(load_lexicon("office")).save_pretrained(folder)
        layers = [layer_of(torch.randn(5, 16), torch.randn(5, 3 - layer, 16), -2 * torch.ones(5)) for layer in range(3)]
        rng = np.random.default_rng(5)
        corpus = tuple((1, *(int(token) for token in rng.integers(3, 39, size=n))) for n in (0, 1, 7, 20, 20, 30, 31))
        found[name] = replace(tiny_subject, model=open_model(folder), dictionary=dictionary_of("clt", layers, d_model=16), corpus=corpus)
    return found


def seen(subject: Subject) -> TokenActivations:
    """Activations on the subject's corpus."""
    return observe(subject.model, subject.dictionary, subject.corpus)


def log_p(model: LanguageModel, document: tuple[int, ...], position: int, change: Tensor | None = None) -> Tensor:
    """log of the next-token distribution of the plain model; a change is added to the final residual stream at the position."""

    def changed(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, position] += change.to(x.dtype)
        return x

    handle = None if change is None else rewrite(resolve_write(model, model.n_layers - 1, "resid_post"), changed)
    with torch.inference_mode():
        logits = model.forward(torch.tensor([document]))[0, position].double()
    if handle is not None:
        handle.remove()
    return logits.log_softmax(-1)


def by_hand(subject: Subject, activations: TokenActivations, feature: FeatureId, n: int) -> tuple[float, int]:
    """Mean of KL(p ‖ q) over the middle tokens of n equal parts in order of activation, a forward pass with and without for each."""
    rows, values = activations.column(feature.layer, feature.index)
    order = sorted(range(len(rows)), key=lambda k: (values[k], rows[k]))
    parts = min(n, len(order))
    found = []
    for part in range(parts):
        k = order[int((part + 0.5) * len(order) / parts)]
        document, position = subject.corpus[activations.document[rows[k]]], int(activations.position[rows[k]])
        own = float(values[k]) * subject.dictionary.decoder(feature).double().sum(0)
        p, q = log_p(subject.model, document, position), log_p(subject.model, document, position, -own)
        found.append(float((p.exp() * (p - q)).sum()))
    return sum(found) / len(found), len(found)


@pytest.mark.parametrize("name", ["llama", "sae", "vector", *FAMILIES])
def test_it_equals_plain_forward_passes_with_and_without_the_feature(families, name):
    subject = families[name]
    activations = seen(subject)
    features = [each for each in list(subject.dictionary.features())[::4] if len(activations.column(each.layer, each.index)[0])]
    found = motor_shares(subject, activations, features, n_tokens=3, observer=SilentObserver())
    assert list(found) == features != []
    for feature in features:
        expected, n = by_hand(subject, activations, feature, 3)
        assert found[feature][1] == n
        assert found[feature][0] == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert expected > 1e-5


@pytest.mark.parametrize("name", ["llama", *FAMILIES])
def test_what_follows_the_stream_is_what_the_model_does_with_it(families, name):
    model, document = families[name].model, families[name].corpus[-1]
    (batch,) = content_batches(model, [document], [(2, "resid_post")])
    with output_of(model) as output:
        computed = output.logits(batch.values[2, "resid_post"])
    with torch.inference_mode():
        expected = model.forward(torch.tensor([document]))[0][torch.from_numpy(batch.position).long()]
    torch.testing.assert_close(computed, expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(computed.softmax(-1), expected.softmax(-1), atol=1e-6, rtol=1e-5)


def test_the_bias_of_the_unembedding_counts(tiny_subject):
    model = replace(tiny_subject.model, hf=deepcopy(tiny_subject.model.hf))
    model.hf.lm_head.bias = torch.nn.Parameter(3 * torch.randn(model.vocabulary), requires_grad=False)
    subject, feature = replace(tiny_subject, model=model), FeatureId("clt", 1, 5)
    activations = seen(subject)
    found = motor_shares(subject, activations, [feature], observer=SilentObserver())[feature][0]
    assert found == pytest.approx(by_hand(subject, activations, feature, 8)[0], rel=1e-3)
    assert found != pytest.approx(by_hand(tiny_subject, activations, feature, 8)[0], rel=1e-2)


def test_of_a_narrow_model_it_is_what_its_weights_say_not_what_its_logits_are_rounded_to(tiny_subject, tiny_model_dir):
    narrow = open_model(tiny_model_dir, dtype="bfloat16")
    (batch,) = content_batches(narrow, [tiny_subject.corpus[0]], [(2, "resid_post")])
    x = batch.values[2, "resid_post"]
    with output_of(narrow) as output:
        computed = output.logits(x)
    wide = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * narrow.hf.model.norm.weight.double()
    torch.testing.assert_close(computed.double(), wide @ narrow.hf.lm_head.weight.double().T, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        rounded = narrow.forward(torch.tensor([tiny_subject.corpus[0]]))[0][torch.from_numpy(batch.position).long()]
    torch.testing.assert_close(computed, rounded.float(), atol=0.06, rtol=0.03)


def test_chunks_and_blocks_have_no_say(tiny_subject, monkeypatch):
    activations, features = seen(tiny_subject), list(tiny_subject.dictionary.features())[::9]
    whole = motor_shares(tiny_subject, activations, features, observer=SilentObserver())
    monkeypatch.setattr(motor, "PAIRS", 5)
    monkeypatch.setattr(motor, "BLOCK_ELEMENTS", 16 * 37)
    parts = motor_shares(tiny_subject, activations, features[::-1], observer=SilentObserver())
    assert list(parts) == features[::-1]
    for feature in features:
        assert whole[feature][0] == pytest.approx(parts[feature][0], rel=1e-4)
        assert whole[feature][1] == parts[feature][1] == min(8, activations.counts(feature.layer)[feature.index])


def test_a_feature_that_writes_nothing_has_exactly_none(tiny_subject, dense_of, with_tensors):
    decoders = [matrix.clone() for matrix in dense_of(tiny_subject.dictionary).W_dec]
    decoders[1][4] = 0
    subject = replace(tiny_subject, dictionary=with_tensors(tiny_subject.dictionary, W_dec=decoders))
    silent, loud = FeatureId("clt", 1, 4), FeatureId("clt", 1, 5)
    found = motor_shares(subject, seen(subject), [loud, silent, loud], observer=SilentObserver())
    assert found[silent] == (0.0, 8)
    assert found[loud][0] > 1e-4
    assert len(found) == 2


def test_a_feature_that_never_fires_has_none(tiny_subject):
    activations = seen(tiny_subject)
    layer = activations.layers[1].tolil()
    layer[:, 4] = 0
    silent = replace(activations, layers=(activations.layers[0], sparse.csr_matrix(layer), activations.layers[2]))
    assert motor_shares(tiny_subject, silent, [FeatureId("clt", 1, 4)], observer=SilentObserver()) == {FeatureId("clt", 1, 4): (None, 0)}
    assert motor_shares(tiny_subject, silent, [], observer=SilentObserver()) == {}


def test_what_does_not_reach_the_stream_by_a_linear_map_has_none(tiny_subject, dictionary_of, layer_of):
    made = dictionary_of("sae", [None, layer_of(torch.randn(4, 16), torch.randn(4, 16)), None], d_model=16, hooks=("mlp_in", "mlp_out_raw"))
    subject, feature = replace(tiny_subject, dictionary=made), FeatureId("sae", 1, 2)
    assert motor_shares(subject, seen(subject), [feature], observer=SilentObserver()) == {feature: (None, 0)}


class Watcher:
    """Keeps what it is told; stops after some of it."""

    def __init__(self, last: int = 10**9) -> None:
        self.events: list[StepProgress] = []
        self.last = last

    def notify(self, event: Event) -> None:
        assert isinstance(event, StepProgress)
        self.events.append(event)

    def should_stop(self) -> bool:
        return len(self.events) >= self.last


def test_only_documents_that_are_needed_are_run(tiny_subject, monkeypatch):
    activations, feature, ran = seen(tiny_subject), FeatureId("clt", 0, 1), []
    real = content_batches

    def watched(model, documents, sites):
        ran.extend(documents)
        return real(model, documents, sites)

    monkeypatch.setattr(motor, "content_batches", watched)
    watcher = Watcher()
    motor_shares(tiny_subject, activations, [feature], n_tokens=2, observer=watcher)
    rows, _ = spread(activations, feature, 2)
    assert ran == [tiny_subject.corpus[k] for k in sorted({int(activations.document[row]) for row in rows})]
    assert [event.step for event in watcher.events] == ["output side"] * len(watcher.events)
    assert watcher.events[-1].done == watcher.events[-1].total == len(ran) + 2


def test_it_stops_when_asked_to(tiny_subject):
    watcher = Watcher(last=1)
    with pytest.raises(Interrupted):
        motor_shares(tiny_subject, seen(tiny_subject), [FeatureId("clt", 0, 1)], observer=watcher)
    assert len(watcher.events) == 1


def test_other_documents_than_the_corpus(tiny_subject):
    """Documents are told apart by the index that the activations have."""
    documents, feature = tiny_subject.corpus[40:60], FeatureId("clt", 0, 1)
    activations = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    found = motor_shares(tiny_subject, activations, [feature], documents=documents, observer=SilentObserver())
    expected = motor_shares(replace(tiny_subject, corpus=documents), activations, [feature], observer=SilentObserver())
    assert found == expected
    assert found[feature][0] == pytest.approx(by_hand(replace(tiny_subject, corpus=documents), activations, feature, 8)[0], rel=1e-3)
    with pytest.raises(ValueError, match="not of these documents"):
        motor_shares(tiny_subject, activations, [feature], observer=SilentObserver())
    with pytest.raises(ValueError, match="where there are 2 documents"):
        motor_shares(tiny_subject, activations, [feature], documents=documents[:2], observer=SilentObserver())
    with pytest.raises(ValueError, match="not in these documents"):
        motor_shares(tiny_subject, activations, [feature], documents=[each[:3] for each in documents], observer=SilentObserver())


def test_weights_outside_the_device_are_brought_to_it(tiny_subject, tiny_model_dir):
    offloaded = replace(tiny_subject, model=open_model(tiny_model_dir, device="auto", max_memory={"cpu": 1}))
    assert offloaded.model.hf.lm_head.weight.is_meta
    activations, features = seen(tiny_subject), [FeatureId("clt", 0, 0), FeatureId("clt", 2, 5)]
    expected = motor_shares(tiny_subject, activations, features, observer=SilentObserver())
    assert motor_shares(offloaded, activations, features, observer=SilentObserver()) == expected


def test_a_feature_that_the_dictionary_does_not_have_is_refused(tiny_subject):
    with pytest.raises(UsageError, match="clt/2/99"):
        motor_shares(tiny_subject, seen(tiny_subject), [FeatureId("clt", 2, 99)], observer=SilentObserver())


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 9))
def test_tokens_are_spread_over_all_activations(strengths, n):
    """One from each of n equal parts in order of activation, its middle; all where there are no more."""
    values = np.array(strengths, dtype=np.float32)
    count = np.arange(len(values), dtype=np.int32)
    activations = TokenActivations(
        token_ids=count, document=count, position=count,
        layers=(sparse.csr_matrix(values[:, None]),), sigma=np.ones((len(values), 2), dtype=np.float32),
    )  # fmt: skip
    rows, found = spread(activations, FeatureId("plt", 0, 0), n)
    firing = np.flatnonzero(values)
    assert len(set(rows)) == len(rows) == min(n, len(firing))
    assert values[rows].tolist() == found.tolist() == sorted(found.tolist())
    ordered = sorted(values[firing].tolist())
    assert found.tolist() == [ordered[int((k + 0.5) * len(firing) / len(rows))] for k in range(len(rows))]
