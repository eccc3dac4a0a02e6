"""What is observed equals what one document alone, unbatched and dense, gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import Interrupted
from audit.records import FeatureId
from audit.scenario import Message, Passage
from audit.subject import activations
from audit.subject.activations import content_batches, observe, passages, residual_norms
from audit.subject.dictionary import Dictionary
from audit.subject.hookpoints import capture
from audit.subject.model import LanguageModel
from audit.subject.norms import Norm


def one_by_one(subject, documents):
    """(activations a layer, sigma, token ids, document, position) by the plainest way."""
    model, dictionary = subject.model, subject.dictionary
    sites = [(layer, name) for layer in range(3) for name in dict.fromkeys((dictionary.input_hook, "resid_mid"))]
    rows = []
    for number, ids in enumerate(documents):
        with torch.inference_mode(), capture(model, sites) as found:
            model.forward(torch.tensor([list(ids)]))
        for position, token in enumerate(ids):
            if token not in model.special_ids:
                acts = [
                    dictionary.encode(layer, found[layer, dictionary.input_hook][0, position]) if dictionary.widths[layer] else None
                    for layer in range(3)
                ]
                sigma = [(found[layer, "resid_mid"][0, position].pow(2).mean() + 1e-5).sqrt() for layer in range(3)]
                rows.append((token, number, position, acts, sigma))
    return rows


@pytest.mark.parametrize("name", ["tiny_subject", "tiny_plt_subject", "tiny_sae_subject", "tiny_vector_subject"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 8192])
def test_batches_change_nothing(request, name, batch_tokens):
    subject = request.getfixturevalue(name)
    documents = subject.corpus[:9]
    found = observe(subject.model, subject.dictionary, documents, batch_tokens=batch_tokens)
    rows = one_by_one(subject, documents)
    assert found.token_ids.tolist() == [row[0] for row in rows]
    assert found.document.tolist() == [row[1] for row in rows]
    assert found.position.tolist() == [row[2] for row in rows]
    for layer, width in enumerate(subject.dictionary.widths):
        if width:
            dense = torch.stack([row[3][layer] for row in rows]).numpy()
            assert np.allclose(found.layers[layer].toarray(), dense, atol=1e-4)
            assert np.allclose(found.sigma[:, layer], [float(row[4][layer]) for row in rows], atol=1e-4)
        else:
            assert found.layers[layer].shape == (len(rows), 0)
            assert found.sigma[:, layer].tolist() == [1.0] * len(rows)


def test_tokens_are_encoded_a_few_at_a_time_where_a_layer_is_wide(tiny_subject, monkeypatch):
    documents = tiny_subject.corpus[:9]
    whole = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    seen, encode = [], Dictionary.encode
    monkeypatch.setattr(activations, "DENSE_ELEMENTS", 24 * 5 + 7)
    monkeypatch.setattr(Dictionary, "encode", lambda self, layer, x: seen.append(len(x)) or encode(self, layer, x))
    parts = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    assert max(seen) == 5
    assert sum(seen) == 3 * whole.n_tokens
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert np.allclose(one.toarray(), other.toarray(), atol=1e-6)


def test_sigma_is_of_the_centred_stream_behind_a_layer_norm(tiny_subject, monkeypatch):
    def layer_norm(self, layer):
        return Norm(kind="layer", eps=0.25, gain=torch.ones(16))

    monkeypatch.setattr(LanguageModel, "mlp_norm", layer_norm)
    documents = tiny_subject.corpus[:3]
    found = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    for layer in range(3):
        (batch,) = content_batches(tiny_subject.model, documents, [(layer, "resid_mid")])
        order = np.lexsort((batch.position, batch.document))
        stream = batch.values[layer, "resid_mid"].double().numpy()[order]
        assert np.allclose(found.sigma[:, layer], np.sqrt(stream.var(axis=1) + 0.25), rtol=1e-5)


def test_only_content_is_kept(tiny_subject):
    found = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:5])
    assert not set(found.token_ids.tolist()) & tiny_subject.model.special_ids
    for token, document, position in zip(found.token_ids, found.document, found.position, strict=True):
        assert tiny_subject.corpus[document][position] == token


@settings(max_examples=10)
@given(order=st.permutations(range(6)))
def test_a_documents_activations_do_not_depend_on_its_neighbours(tiny_subject, order):
    documents = [tiny_subject.corpus[k] for k in order]
    alone = observe(tiny_subject.model, tiny_subject.dictionary, documents[:1])
    together = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    first = together.document == 0
    for layer in range(3):
        assert np.allclose(together.layers[layer][first].toarray(), alone.layers[layer].toarray(), atol=1e-4)


def test_columns_and_counts(tiny_subject):
    found = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:20])
    dense = found.layers[1].toarray()
    assert found.counts(1).tolist() == (dense > 0).sum(0).tolist()
    rows, values = found.column(1, 4)
    assert rows.tolist() == np.flatnonzero(dense[:, 4]).tolist()
    assert np.array_equal(values, dense[rows, 4])


def test_the_token_that_comes_next_is_the_next_content_token_of_the_document(tiny_subject):
    documents = tiny_subject.corpus[:6]
    found = observe(tiny_subject.model, tiny_subject.dictionary, documents)
    content = {(int(d), int(p)): int(token) for d, p, token in zip(found.document, found.position, found.token_ids, strict=True)}
    expected = [content.get((int(d), int(p) + 1), -1) for d, p in zip(found.document, found.position, strict=True)]
    assert found.following().tolist() == expected
    assert expected.count(-1) >= len(documents)
    assert len(expected) > expected.count(-1)


def test_some_tokens_are_selected_in_order(tiny_subject):
    found = observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus[:6])
    rows = found.position % 2 == 0
    some = found.selected(rows)
    assert some.n_tokens == rows.sum() > 0
    for name in ("token_ids", "document", "position", "sigma"):
        assert np.array_equal(getattr(some, name), getattr(found, name)[rows])
    for layer, whole in zip(some.layers, found.layers, strict=True):
        assert np.array_equal(layer.toarray(), whole.toarray()[rows])


def test_the_last_denominator_is_that_of_the_final_norm(tiny_subject):
    model, document = tiny_subject.model, tiny_subject.corpus[0]
    found = observe(model, tiny_subject.dictionary, [document])
    with torch.no_grad():
        before = {}
        handle = model.backbone.norm.register_forward_hook(lambda _module, args, _output: before.update(x=args[0]))
        model.hf(torch.tensor([document]))
        handle.remove()
    x = before["x"][0].double()
    expected = (x.pow(2).mean(-1) + model.hf.config.rms_norm_eps).sqrt()[found.position.tolist()]
    assert np.allclose(found.sigma[:, -1], expected.numpy(), rtol=1e-5)


def test_no_documents_give_no_rows(tiny_subject):
    found = observe(tiny_subject.model, tiny_subject.dictionary, [(), (tiny_subject.model.tokenizer.bos_token_id,)])
    assert found.n_tokens == 0
    assert [layer.shape for layer in found.layers] == [(0, 24)] * 3
    assert found.sigma.shape == (0, 4)


def test_no_documents_give_no_rows_of_no_features(tiny_sae_subject):
    found = observe(tiny_sae_subject.model, tiny_sae_subject.dictionary, [()])
    assert [layer.shape for layer in found.layers] == [(0, 0), (0, 24), (0, 0)]
    assert [len(found.counts(layer)) for layer in range(3)] == [0, 24, 0]


def test_passages_are_encoded_whole(tiny_subject):
    turns = (Message(role="user", content="Your deadline nears."), Message(role="assistant", content="stop"))
    found = passages(tiny_subject.model, tiny_subject.dictionary, [Passage(messages=turns), Passage(text="You are")])
    texts = "".join(tiny_subject.model.token_texts(found.token_ids.tolist()))
    assert texts == " Your deadline nears. stop You are"


def test_residual_norms_are_of_the_stream_that_a_layers_mlp_has_written_to(tiny_subject):
    model, documents = tiny_subject.model, tiny_subject.corpus[:30]
    sites = [(layer, name) for layer in range(3) for name in ("resid_mid", "mlp_out")]
    norms = [[], [], []]
    for document in documents:
        content = [place for place, token in enumerate(document) if token not in model.special_ids]
        with torch.inference_mode(), capture(model, sites) as found:
            model.hf(input_ids=torch.tensor([document]))
            for layer in range(3):
                norms[layer] += (found[layer, "resid_mid"] + found[layer, "mlp_out"])[0, content].norm(dim=-1).tolist()
    assert np.allclose(residual_norms(model, documents), np.mean(norms, axis=1), rtol=1e-5)


@pytest.mark.parametrize("hook", ["resid_pre", "resid_mid", "resid_post"])
def test_residual_norms_are_of_the_stream_that_is_named(tiny_subject, hook):
    model, documents = tiny_subject.model, tiny_subject.corpus[:10]
    norms = [[], [], []]
    for document in documents:
        content = [place for place, token in enumerate(document) if token not in model.special_ids]
        with torch.inference_mode(), capture(model, [(layer, hook) for layer in range(3)]) as found:
            model.hf(input_ids=torch.tensor([document]))
        for layer in range(3):
            norms[layer] += found[layer, hook][0, content].norm(dim=-1).tolist()
    assert np.allclose(residual_norms(model, documents, hook), np.mean(norms, axis=1), rtol=1e-5)


def test_progress_counts_documents_and_may_stop(tiny_subject):
    seen = []
    model, dictionary = tiny_subject.model, tiny_subject.dictionary
    observe(model, dictionary, tiny_subject.corpus[:10], batch_tokens=64, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})

    def stop(done: int, total: int) -> None:
        raise Interrupted("Stopped", "asked.", "again.")

    with pytest.raises(Interrupted):
        observe(tiny_subject.model, tiny_subject.dictionary, tiny_subject.corpus, progress=stop)
    assert not any(module._forward_pre_hooks for module in tiny_subject.model.hf.modules())


def test_feature_ids_of_the_matrix_are_those_of_the_dictionary(tiny_subject):
    assert {feature.dictionary for feature in tiny_subject.dictionary.features()} == {"clt"}
    assert FeatureId("clt", 2, 23) in set(tiny_subject.dictionary.features())
