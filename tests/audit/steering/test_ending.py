from __future__ import annotations

import pytest

from audit.errors import SubjectError
from audit.steering.ending import StopTexts, check_length, end_ids
from audit.subject import Subject


def test_a_stop_text_is_found_when_its_last_token_is_written(tiny_subject: Subject) -> None:
    model = tiny_subject.model
    ids = model.encode_text("You are the agent of Summit.")[1:]
    stops = StopTexts(model=model, texts=("nothing like it", "agent of"))
    found = [stops.found(ids[: n + 1]) for n in range(len(ids))]
    first = next(n for n in range(len(ids)) if "agent of" in model.decode(ids[: n + 1]))
    assert 0 < first < len(ids) - 1
    assert found[:first] == [""] * first
    assert found[first] == "agent of"


def test_without_stop_texts_nothing_is_decoded(tiny_subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(tiny_subject.model), "decode", lambda self, ids: pytest.fail("decoded"))
    assert StopTexts(model=tiny_subject.model, texts=()).found([5, 6]) == ""


def test_the_models_own_ends_are_known(tiny_subject: Subject) -> None:
    assert tiny_subject.model.tokenizer.eos_token_id in end_ids(tiny_subject.model)


def test_what_does_not_fit_is_refused(tiny_subject: Subject) -> None:
    check_length(tiny_subject.model, range(200), 56)
    with pytest.raises(SubjectError, match="It has 200 tokens, and with 57 generated ones it exceeds the model's 256"):
        check_length(tiny_subject.model, range(200), 57)
