"""The text that statistics are computed on: JSON lines of ``{"text": ...}``, or plain text with blank lines between documents.

A corpus is read document by document; only ``read_corpus`` holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from audit.errors import UsageError

if TYPE_CHECKING:
    from audit.subject.model import LanguageModel

JSON_SUFFIXES = (".jsonl", ".json")
"""Of files with one JSON object a line; any other file is plain text."""
LONGEST_LINE = 1 << 26
"""Bytes: a longer line is refused, so that a file without line ends is not held in memory."""
LONGEST_DOCUMENT = 1 << 20
"""Bytes of plain text after which a document ends with its line, although no blank line follows."""
_FORM = 'Write one JSON object a line, such as {"text": "Some text."}, or plain text in UTF-8 (.txt) with blank lines between documents.'


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusText:
    """One document of a corpus."""

    text: str
    end: int
    """Bytes of the file up to its end."""


def read_corpus(path: Path) -> tuple[str, ...]:
    """Texts of a corpus, all at once; see ``stream_corpus``.

    Raises:
        UsageError: as ``stream_corpus``.
    """
    return tuple(document.text for document in stream_corpus(path))


def stream_corpus(path: Path) -> Iterator[CorpusText]:
    """Documents of a corpus in UTF-8, one after the other.

    Args:
        path: a file whose lines are ``{"text": ...}`` where its name ends in ``.jsonl`` or ``.json``; blank lines are skipped. Any other
            is plain text: documents lie between blank lines.

    Raises:
        UsageError: there is no such file, a line is not of that form, or there is no document in it.
    """
    documents = _json_documents if path.suffix.lower() in JSON_SUFFIXES else _plain_documents
    empty = True
    try:
        with path.open("rb") as stream:
            for document in documents(stream, path):
                empty = False
                yield document
    except OSError as error:
        raise UsageError("The corpus cannot be read", f"'{path}': {error}", _FORM) from error
    if empty:
        raise UsageError("The corpus is empty", f"'{path}' has no documents.", _FORM)


def _json_documents(stream: BinaryIO, path: Path) -> Iterator[CorpusText]:
    for place, line, end in _lines(stream, path):
        if line.strip():
            yield CorpusText(text=_text(line, place), end=end)


def _plain_documents(stream: BinaryIO, path: Path) -> Iterator[CorpusText]:
    kept: list[str] = []
    size, last = 0, 0
    for _, line, end in _lines(stream, path):
        if line.strip():
            kept.append(line)
            size, last = size + len(line), end
        if kept and (not line.strip() or size >= LONGEST_DOCUMENT):
            yield CorpusText(text="\n".join(kept), end=end)
            kept, size = [], 0
    if kept:
        yield CorpusText(text="\n".join(kept), end=last)


def _lines(stream: BinaryIO, path: Path) -> Iterator[tuple[str, str, int]]:
    """Place, text without its end, and bytes up to there, of every line."""
    end = number = 0
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        end += len(raw)
        if len(raw) > LONGEST_LINE:
            raise UsageError("The corpus is broken", f"{path}:{number} is longer than {LONGEST_LINE >> 20} MiB.", _FORM)
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UsageError("The corpus cannot be read", f"{path}:{number} is not UTF-8: {error}.", _FORM) from error
        yield f"{path}:{number}", line.rstrip("\r\n"), end


def _text(line: str, place: str) -> str:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError("The corpus is broken", f"{place} is not JSON: {error}.", _FORM) from error
    if not isinstance(found, dict) or not isinstance(found.get("text"), str):
        raise UsageError("The corpus is broken", f"{place} has no text.", _FORM)
    try:
        found["text"].encode()
    except UnicodeEncodeError as error:
        raise UsageError("The corpus is broken", f"{place} has half a surrogate pair, which is no character: {error}.", _FORM) from error
    return str(found["text"])


def tokenise(model: LanguageModel, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Token ids of the documents; one that is longer than the model's context becomes several, each with its BOS.

    Raises:
        UsageError: there is no token in them.
    """
    found = tuple(part for windows in tokenised(model, texts) for part in windows)
    if not found:
        raise UsageError(
            "The corpus is empty", "Its documents hold no tokens.", 'Write text, such as {"text": "Some text."}, one object a line.'
        )
    return found


def tokenised(model: LanguageModel, texts: Sequence[str]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """As ``tokenise``, by document: the token ids of its parts; of one without content there may be none."""
    return tuple(tuple(_windows(ids, model)) for ids in model.encode_texts(texts))


def _windows(ids: tuple[int, ...], model: LanguageModel) -> Iterator[tuple[int, ...]]:
    bos = ids[:1] if ids and ids[0] in model.special_ids else ()
    width = model.context_length - len(bos)
    for start in range(len(bos), len(ids), width):
        yield bos + ids[start : start + width]
