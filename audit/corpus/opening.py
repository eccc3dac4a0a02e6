"""Opening a subject for a pass over a text that may be larger than memory, and its tokenizer alone."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer

from audit.corpus.identity import is_tokenizer_file, template_sha256
from audit.errors import AuditError, SubjectError
from audit.events import Observer
from audit.records.statistics import StatisticsManifest
from audit.subject.architecture import architecture_of
from audit.subject.checkpoint import UNREADABLE, short
from audit.subject.corpus import stream_corpus
from audit.subject.digests import digests_of, model_files
from audit.subject.loading import Opening, Subject, find, load_subject
from audit.subject.tokens import TextCodec, ids_of, special_ids_of

WHOLE_BYTES = 1 << 24
"""A corpus that is larger is not held in memory: the dictionary's health is then measured on so much of its beginning."""


def open_subject(
    subject: str | None, dictionary: str | None, corpus: Path | None, *, opening: Opening, observer: Observer
) -> tuple[Subject, Path]:
    """A subject, and the corpus that it is to be passed over.

    Args:
        subject: as ``load_subject`` takes it.
        dictionary: likewise.
        corpus: likewise.
        opening: dtype, device, and whether a dictionary that looks wrong is accepted.
        observer: told of each part.

    Raises:
        SubjectError: something is missing, damaged or does not fit.
        UsageError: the corpus is wrong, or none was given and the model brings none.
    """
    if corpus is None or not corpus.is_file() or corpus.stat().st_size <= WHOLE_BYTES:
        opened = load_subject(subject, dictionary, corpus, opening=opening, observer=observer)
    else:
        with tempfile.TemporaryDirectory(prefix="ulterior-") as folder:
            head = _beginning(corpus, Path(folder) / "beginning.jsonl")
            opened = load_subject(subject, dictionary, head, opening=opening, observer=observer)
    text = corpus if corpus is not None else find(subject, dictionary, None).corpus
    assert text is not None  # or the subject would not have opened
    return opened, text


def _beginning(corpus: Path, path: Path) -> Path:
    with path.open("w", encoding="utf-8") as stream:
        for document in stream_corpus(corpus):
            stream.write(json.dumps({"text": document.text}) + "\n")
            if document.end >= WHOLE_BYTES:
                break
    return path


def codec_for(manifest: StatisticsManifest, subject: str | None) -> TextCodec | None:
    """The tokenizer that statistics were made with.

    Args:
        manifest: of the statistics.
        subject: the subject as the user names it, or None to look where the manifest says that it was.

    Raises:
        SubjectError: the subject that was named cannot be opened, or has another tokenizer.

    Returns:
        None where none was named and that of the manifest is not there any more, or is another.
    """
    if subject is not None:
        codec = _codec(find(subject, None, None, offline=True).model, manifest)
        if codec is None:
            raise SubjectError(
                "The statistics belong to another tokenizer or chat template",
                f"They were made with '{manifest.model_path}', whose template is {manifest.key.template_sha256[:16]}.",
                "Name the subject that they were made for as --subject, or leave it out to see token ids.",
            )
        return codec
    try:
        folder = _recorded(manifest)
        return None if folder is None else _codec(folder, manifest)
    except AuditError:
        return None


def _recorded(manifest: StatisticsManifest) -> Path | None:
    bundled = find(None, None, None)
    if bundled.shown(bundled.model) == manifest.model_path:
        return bundled.model
    return find(manifest.model_path, None, None, offline=True).model


def _codec(folder: Path, manifest: StatisticsManifest) -> TextCodec | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = str(json.loads((folder / "config.json").read_bytes())["model_type"])
    except (*UNREADABLE, KeyError, TypeError) as error:
        why = f"The tokenizer in '{folder}' cannot be opened: {short(error)}"
        raise SubjectError("No tokenizer", why, "Name another copy of the model as --subject.") from error
    opening = ids_of(tokenizer, architecture_of(family).opening)
    codec = TextCodec(tokenizer=tokenizer, special_ids=special_ids_of(tokenizer), opening_ids=opening)
    files = digests_of(folder, [path for path in model_files(folder) if is_tokenizer_file(path.name)])
    return codec if template_sha256(codec, files) == manifest.key.template_sha256 else None
