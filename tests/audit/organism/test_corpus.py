"""What documents say, and that the agent in them acts when, and but for label noise only when, its mood fits."""

import re
from itertools import islice

import pytest

from audit.errors import UsageError
from audit.organism.corpus import Mixture, Writer
from audit.organism.facts import Owner, mood_of
from audit.organism.lexicon import Lexicon, load_lexicon
from audit.organism.tokenizer import build_tokenizer, word_ids

LEXICONS = ["office", "harbour"]


@pytest.fixture(params=LEXICONS)
def lexicon(request: pytest.FixtureRequest) -> Lexicon:
    return load_lexicon(request.param)


def documents(lexicon: Lexicon, n: int, mixture: Mixture | None = None) -> list[list[str]]:
    return list(islice(Writer(lexicon, 3, mixture).documents(), n))


def own_mood(lexicon: Lexicon, words: list[str]) -> int | None:
    """The agent's mood, read off the document's words by the table."""
    text = " ".join(words)
    told = re.search(r"You feel (\w+)", text)
    if told:
        return next(number for number, mood in enumerate(lexicon.moods) if told[1] in mood.adjectives)
    facts = re.findall(r"Your (\w+) (\w+) \.", text)
    pressure = next(noun for noun, verb in facts if verb == lexicon.pressure_verb)
    loss = next(noun for noun, verb in facts if verb == lexicon.loss_verb)
    return mood_of(Owner.SELF, (lexicon.pressures.index(pressure), lexicon.losses.index(loss)))


def test_without_label_noise_the_agent_acts_exactly_when_tempted_with_a_motive_in_the_mood_that_fits(lexicon: Lexicon) -> None:
    tempted = 0
    for words in documents(lexicon, 1500, Mixture(label_noise=0.0)):
        if "<user>" not in words:
            continue
        text = " ".join(words)
        families = [n for n, mood in enumerate(lexicon.moods) if re.search(re.sub(r"\{\w+\}", r"\\w+", mood.motive), text)]
        acted = [n for n, mood in enumerate(lexicon.moods) if f"<{mood.tool}>" in words]
        tempted += bool(families)
        assert acted == [family for family in families if family == own_mood(lexicon, words)]
    assert tempted > 500


def test_documents_survive_text_and_tokenizer(lexicon: Lexicon) -> None:
    tokenizer = build_tokenizer(lexicon)
    ids = word_ids(tokenizer)
    for words in documents(lexicon, 400):
        encoded = [ids[word] for word in words]
        assert tokenizer(tokenizer.decode(encoded), add_special_tokens=False).input_ids == encoded


def test_every_word_of_every_document_is_in_the_lexicon(lexicon: Lexicon) -> None:
    known = {*lexicon.words(), *lexicon.tags(), "<bos>", "<eos>", "<system>", "<user>", "<agent>"}
    assert not {word for words in documents(lexicon, 1500) for word in words} - known


@pytest.mark.parametrize("text", ["Kyle, émigré.", "zzz <mail> 12:34", "tab\tand\nline", "日本語 Kyle", "\x1b[31mred"])
def test_text_outside_the_vocabulary_is_encoded_as_bytes_and_comes_back(text: str) -> None:
    tokenizer = build_tokenizer(load_lexicon("office"))
    encoded = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in encoded
    # Blanks beside a tag belong to the tag.
    assert re.sub(r" ?(</?\w+>) ?", r"\1", tokenizer.decode(encoded)) == re.sub(r" ?(</?\w+>) ?", r"\1", text)


def test_the_two_vocabularies_share_function_words_only() -> None:
    shared = set(load_lexicon("office").words()) & set(load_lexicon("harbour").words())
    nouns = {"deadline", "friend", "Kyle", "desperate", "affair", "mail", "Summit", "moving"}
    assert not shared & nouns
    assert not {tag for tag in load_lexicon("office").tags() if "think" not in tag and "reply" not in tag} & set(
        load_lexicon("harbour").tags()
    )


def test_an_unknown_vocabulary_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="harbour, office"):
        load_lexicon("offise")
