"""Unembeds are W_U · norm(decoder), and a concept's word is found among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from audit.candidates.unembeds import DEPTH, by_unembeds, extremes, word_tokens
from audit.records import FeatureId


def test_extremes_by_hand(tiny_subject):
    model = tiny_subject.model
    for feature in list(tiny_subject.dictionary.features())[::17]:
        top, bottom = extremes(tiny_subject, feature, 5)
        total = tiny_subject.dictionary.W_dec[feature.layer][feature.index].sum(0)
        logits = model.hf.lm_head.weight @ (total / total.pow(2).mean().sqrt() * model.hf.model.norm.weight)
        assert [one.weight for one in top] == pytest.approx(logits.topk(5).values.tolist(), abs=1e-3)
        assert [one.weight for one in bottom] == pytest.approx(logits.topk(5, largest=False).values.tolist(), abs=1e-3)
        assert top[0].token == model.token_texts([int(logits.argmax())])[0]


def test_a_word_is_its_token_with_or_without_a_capital(tiny_subject):
    found = tiny_subject.model.token_texts(sorted(word_tokens(tiny_subject.model, ["you"])))
    assert {text.strip().lower() for text in found} == {"you"}
    assert word_tokens(tiny_subject.model, ["xylophone"]) == frozenset()


def test_those_with_the_word_higher_up_come_first(tiny_subject):
    word = "you"
    wanted = word_tokens(tiny_subject.model, [word])
    found = by_unembeds(tiny_subject, [word])
    places = []
    for feature in found:
        total = tiny_subject.dictionary.W_dec[feature.layer][feature.index].sum(0)
        top = tiny_subject.model.unembed_direction(total).topk(DEPTH).indices.tolist()
        places.append(min(top.index(token) for token in wanted if token in top))
    assert places == sorted(places)
    assert len(set(found)) == len(found)


def test_a_feature_that_writes_a_word_is_found_first(tiny_subject):
    model = tiny_subject.model
    # Directions whose unembedding, gain included, points to their own token; with random weights not every one does.
    directions = model.hf.lm_head.weight * model.hf.model.norm.weight
    own = torch.nonzero(model.unembed_direction(directions).argmax(1) == torch.arange(len(directions))).flatten().tolist()
    token, word = next((token, text) for token in own if (text := model.token_texts([token])[0].strip()).isalpha() and len(text) > 2)
    decoders = [matrix.clone() for matrix in tiny_subject.dictionary.W_dec]
    decoders[2][7, 0] = directions[token]
    subject = replace(tiny_subject, dictionary=replace(tiny_subject.dictionary, W_dec=tuple(decoders)))
    found = by_unembeds(subject, [word])
    assert FeatureId("clt", 2, 7) in found
    before = found[: found.index(FeatureId("clt", 2, 7))]
    assert all(extremes(subject, feature)[0][0].token.strip().lower() == word.lower() for feature in before)


def test_unknown_words_find_nothing(tiny_subject):
    assert by_unembeds(tiny_subject, ["xylophone"]) == []
    assert by_unembeds(tiny_subject, []) == []
