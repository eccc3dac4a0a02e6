"""Full-text search finds what is written, whatever the user types."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.candidates.examples import label
from audit.candidates.text import by_text, match_any, row_texts, words_of


@given(words=st.lists(st.text(min_size=1).filter(lambda text: "\x00" not in text and text.isprintable()), min_size=1, max_size=4))
def test_no_input_breaks_the_query(words):
    with closing(sqlite3.connect(":memory:")) as index:
        index.execute("CREATE VIRTUAL TABLE t USING fts5(label)")
        index.execute("INSERT INTO t VALUES ('one \"two\" NEAR three*')")
        index.execute("SELECT rowid FROM t WHERE t MATCH ?", (match_any(words),)).fetchall()


@pytest.mark.parametrize("word", ['"', "a OR b", "label:x", "NOT", "x*", "(", "'; DROP TABLE feature", "-", "^a", "NEAR(a b)"])
def test_fts_syntax_is_text(tiny_subject, observed, word):
    assert isinstance(by_text(tiny_subject.model, observed, list(tiny_subject.dictionary.features())[:3], [word]), list)


def test_a_word_of_the_label_is_found(tiny_subject, observed):
    features = list(tiny_subject.dictionary.features())
    labels = {feature: label(tiny_subject.model, observed, feature).split(" · ") for feature in features}
    for feature in features[:10]:
        word = next(word for word in labels[feature] if word.isalpha())
        found = by_text(tiny_subject.model, observed, features, words_of([word]))
        assert feature in found


def test_an_unknown_word_finds_nothing(tiny_subject, observed):
    assert by_text(tiny_subject.model, observed, tiny_subject.dictionary.features(), ["xylophone"]) == []
    assert by_text(tiny_subject.model, observed, tiny_subject.dictionary.features(), []) == []


def test_the_rows_read_as_the_corpus(tiny_subject, observed):
    texts = row_texts(tiny_subject.model, observed)
    first = observed.document == 0
    expected = tiny_subject.model.token_texts(observed.token_ids[first].tolist())
    assert tuple(texts[: int(first.sum())]) == expected


def test_words_of_phrases():
    assert words_of(["Fear of death", "fear"]) == ("fear", "death")
    assert words_of(["I"]) == ("i",)
    assert words_of(["?!", ""]) == ()
