"""A corpus is read document by document, and what is wrong with it is said with the line."""

from __future__ import annotations

import json

import pytest

from audit.errors import UsageError
from audit.subject import corpus
from audit.subject.corpus import read_corpus, stream_corpus, tokenise, tokenised


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSONL"])
def test_json_lines_are_documents(tmp_path, name):
    lines = [json.dumps({"text": text, "other": 1}, ensure_ascii=False) for text in ("One.\n\nTwo.", "Zwölf\u2028", "")]
    path = written(tmp_path, name, f"\ufeff{lines[0]}\r\n\n{lines[1]}\n  \n{lines[2]}")
    assert read_corpus(path) == ("One.\n\nTwo.", "Zwölf\u2028", "")
    ends = [document.end for document in stream_corpus(path)]
    assert ends == sorted(ends)
    assert ends[-1] == path.stat().st_size


@pytest.mark.parametrize("name", ["a.txt", "a", "a.md"])
def test_plain_text_has_documents_between_blank_lines(tmp_path, name):
    path = written(tmp_path, name, '\n\nOne,\nstill one.\n \t\n\n\nTwo "zwölf".\r\n\r\nThree')
    found = list(stream_corpus(path))
    assert [document.text for document in found] == ["One,\nstill one.", 'Two "zwölf".', "Three"]
    assert found[-1].end == path.stat().st_size
    assert read_corpus(path) == tuple(document.text for document in found)


def test_plain_text_without_blank_lines_is_cut_at_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_DOCUMENT", 10)
    path = written(tmp_path, "a.txt", "12345\n67890\nabc\ndefghij\nx\n")
    assert read_corpus(path) == ("12345\n67890", "abc\ndefghij", "x")


def test_a_corpus_is_not_read_ahead(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"text": "One."}\n' * 5 + "{")
    texts = stream_corpus(path)
    assert [next(texts).text for _ in range(5)] == ["One."] * 5
    with pytest.raises(UsageError, match=r"a\.jsonl:6 is not JSON"):
        next(texts)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", "", "The corpus is empty"),
        ("a.txt", "\n \n", "The corpus is empty"),
        ("a.jsonl", '{"text": "a"}\n[1]', r"a\.jsonl:2 has no text"),
        ("a.jsonl", '{"text": 1}', r"a\.jsonl:1 has no text"),
        ("a.jsonl", '{"text": "\\ud800"}', r"a\.jsonl:1 has half a surrogate pair"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n\xff', r"a\.jsonl:2 is not UTF-8"),
        ("a.txt", b"a\n\n\x80\n", r"a\.txt:3 is not UTF-8"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, content, match):
    with pytest.raises(UsageError, match=match) as found:
        read_corpus(written(tmp_path, name, content))
    assert found.value.exit_code == 2


def test_a_file_without_line_ends_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "LONGEST_LINE", 100)
    with pytest.raises(UsageError, match=r"a\.txt:2 is longer than"):
        read_corpus(written(tmp_path, "a.txt", "a" * 99 + "\n" + "b" * 101))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_corpus(path)


def test_parts_are_kept_by_document(tiny_model, tiny_corpus_path):
    words = " ".join(text.removeprefix("<bos> ").removesuffix(" <eos>") for text in read_corpus(tiny_corpus_path))
    texts = ["<bos> <system>", words, ""]
    found = tokenised(tiny_model, texts)
    assert [len(parts) for parts in found] == [1, -(-(len(tiny_model.encode_text(words)) - 1) // 255), 0]
    assert tokenise(tiny_model, texts) == tuple(part for parts in found for part in parts)
    assert [part[0] for part in found[1]] == [tiny_model.first_id] * len(found[1])
    with pytest.raises(UsageError, match="hold no tokens"):
        tokenise(tiny_model, ["", ""])
