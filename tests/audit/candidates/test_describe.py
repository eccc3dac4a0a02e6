"""Descriptors say what the activations say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from audit.candidates import describe
from audit.candidates.describe import antipodality
from audit.candidates.examples import label
from audit.errors import UsageError
from audit.records import FeatureId
from audit.subject import matrix

FEATURE = FeatureId("clt", 1, 4)


def test_the_figures_are_those_of_the_dense_matrix(tiny_subject, observed, dense_of):
    dense = observed.layers[1].toarray()[:, 4]
    found = describe(tiny_subject, observed, FEATURE)
    assert found.frequency == pytest.approx((dense > 0).mean())
    assert found.max_activation == pytest.approx(dense.max())
    assert found.mean_activation == pytest.approx(dense[dense > 0].mean(), rel=1e-5)
    assert found.decoder_norm == pytest.approx(float(dense_of(tiny_subject.dictionary).W_dec[1][4].norm()), rel=1e-5)


def test_examples_are_the_largest_activations_of_distinct_documents(tiny_subject, observed):
    dense = observed.layers[1].toarray()[:, 4]
    by_document = [dense[observed.document == number].max(initial=0) for number in range(len(tiny_subject.corpus))]
    found = describe(tiny_subject, observed, FEATURE).top_examples
    assert len(found) == 8
    assert [example.activations[example.peak] for example in found] == pytest.approx(sorted(by_document)[::-1][:8], abs=1e-3)
    assert all(max(example.activations) == example.activations[example.peak] for example in found)
    assert all(example.quantile is None for example in found)


def test_an_example_is_a_stretch_of_its_document(tiny_subject, observed):
    texts = ["".join(tiny_subject.model.token_texts(ids)) for ids in tiny_subject.corpus]
    found = describe(tiny_subject, observed, FEATURE)
    for example in found.top_examples + found.quantile_examples:
        assert len(example.tokens) == len(example.activations)
        assert len(example.tokens) <= 32
        assert any("".join(example.tokens) in text for text in texts)
        assert not example.tokens[0].startswith("<bos>")


def test_every_activation_in_an_example_is_on_its_token(tiny_subject, observed):
    document = int(observed.document[observed.column(1, 4)[0][np.argmax(observed.column(1, 4)[1])]])
    (example, *_) = describe(tiny_subject, observed, FEATURE).top_examples
    start = "".join(tiny_subject.model.token_texts(tiny_subject.corpus[document])).index("".join(example.tokens))
    assert start >= 0
    offset = next(
        k
        for k in range(len(tiny_subject.corpus[document]))
        if tiny_subject.model.token_texts(tiny_subject.corpus[document][k : k + len(example.tokens)]) == example.tokens
    )
    dense = observed.layers[1].toarray()[:, 4]
    for k, value in enumerate(example.activations):
        row = np.flatnonzero((observed.document == document) & (observed.position == offset + k))
        assert value == pytest.approx(dense[row[0]] if len(row) else 0.0, abs=1e-4)


def test_quantile_examples_go_down_and_repeat_no_document(tiny_subject, observed):
    found = describe(tiny_subject, observed, FEATURE).quantile_examples
    assert [example.quantile for example in found] == [0.8, 0.6, 0.4, 0.2]
    peaks = [example.activations[example.peak] for example in found]
    assert peaks == sorted(peaks, reverse=True)
    top = {example.tokens for example in describe(tiny_subject, observed, FEATURE).top_examples}
    assert len({example.tokens for example in found} | top) == 12


def test_a_label_is_made_of_tokens_on_which_it_fires(tiny_subject, observed):
    rows, _ = observed.column(1, 4)
    fired = {text.strip() for text in tiny_subject.model.token_texts(observed.token_ids[rows].tolist())}
    words = label(tiny_subject.model, observed, FEATURE).split(" · ")
    assert 1 <= len(words) <= 4
    assert len(set(words)) == len(words)
    assert set(words) <= fired


def test_a_label_prefers_strong_and_steady_tokens(tiny_subject, observed):
    rows, values = observed.column(1, 4)
    tokens = observed.token_ids[rows]
    weight = {token: values[tokens == token].sum() * values[tokens == token].mean() for token in set(tokens.tolist())}
    best = max(weight, key=lambda token: weight[token])
    assert label(tiny_subject.model, observed, FEATURE, 1) == tiny_subject.model.token_texts([best])[0].strip()


def test_a_feature_that_never_fires(tiny_subject, observed):
    silent = replace(observed, layers=tuple(layer * 0 for layer in observed.layers))
    for layer in silent.layers:
        layer.eliminate_zeros()
    found = describe(tiny_subject, silent, FEATURE)
    assert (found.label, found.frequency, found.max_activation, found.mean_activation) == ("", 0.0, 0.0, 0.0)
    assert found.top_examples == found.quantile_examples == ()
    assert found.flags == ("rare",)


def test_dense_and_antipodal_features_are_flagged(tiny_subject, observed, dense_of, with_tensors):
    known = dense_of(tiny_subject.dictionary)
    W_enc, W_dec = (tuple(matrix.clone() for matrix in matrices) for matrices in (known.W_enc, known.W_dec))
    W_enc[1][9], W_dec[1][9] = -2 * W_enc[1][4], -3 * W_dec[1][4]
    subject = replace(tiny_subject, dictionary=with_tensors(tiny_subject.dictionary, W_enc=W_enc, W_dec=W_dec))
    assert antipodality(subject.dictionary, FEATURE) == pytest.approx(1.0, abs=1e-5)
    assert "antipodal" in describe(subject, observed, FEATURE).flags
    assert "antipodal" not in describe(tiny_subject, observed, FEATURE).flags
    ones = tuple(type(layer)(np.ones(layer.shape, dtype=np.float32)) for layer in observed.layers)
    everywhere = replace(observed, layers=ones)
    assert "dense" in describe(tiny_subject, everywhere, FEATURE).flags


@pytest.mark.parametrize("block", [1, 7 * 16, 1 << 25])
def test_antipodality_by_hand(tiny_subject, dense_of, monkeypatch, block):
    monkeypatch.setattr(matrix, "BLOCK_ELEMENTS", block)
    known = dense_of(tiny_subject.dictionary)
    enc, dec = known.W_enc[1], known.W_dec[1].flatten(1)
    cosine = torch.nn.functional.cosine_similarity
    by_hand = max(float(cosine(enc[4], enc[j], dim=0) * cosine(dec[4], dec[j], dim=0)) for j in range(24) if j != 4)
    assert antipodality(tiny_subject.dictionary, FEATURE) == pytest.approx(by_hand, abs=1e-5)


def test_a_feature_that_is_not_there_is_refused(tiny_subject, observed):
    with pytest.raises(UsageError):
        describe(tiny_subject, observed, FeatureId("plt", 0, 0))


def test_antipodality_is_exact_above_its_floor_and_reads_no_decoder_below(tiny_subject, monkeypatch):
    exact = antipodality(tiny_subject.dictionary, FEATURE)
    assert antipodality(tiny_subject.dictionary, FEATURE, floor=exact - 1e-6) == pytest.approx(exact, abs=1e-7)
    read = []
    rows = matrix.Matrix.rows
    monkeypatch.setattr(matrix.Matrix, "rows", lambda self, index, **more: read.append(index) or rows(self, index, **more))
    assert antipodality(tiny_subject.dictionary, FEATURE, floor=1.0) == -1.0
    assert all(isinstance(index, slice) for index in read)  # rows of the feature itself
