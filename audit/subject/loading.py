"""Opening what is to be audited: model, dictionary and corpus, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from audit.errors import SubjectError, UsageError
from audit.events import Observer, StepProgress, check_stop
from audit.records import SubjectInfo
from audit.subject import bundled, health
from audit.subject.corpus import read_corpus, tokenise
from audit.subject.dictionary import Dictionary
from audit.subject.digests import file_sha256, model_sha256
from audit.subject.formats import open_dictionary
from audit.subject.hookpoints import NAMES, capture
from audit.subject.model import LanguageModel, open_model

MANIFEST = "ulterior.json"
HEALTH_DOCUMENTS = 200
PARITY_LIMIT = 1e-4
"""Logits may differ by this on a device that does not compute the same twice; on a CPU they do not differ."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """What is audited."""

    model: LanguageModel
    dictionary: Dictionary
    info: SubjectInfo
    corpus: tuple[tuple[int, ...], ...]
    """Token ids of every document."""


class Manifest(BaseModel):
    """``ulterior.json`` of an organism's folder."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    language: str
    model: str
    dictionaries: dict[str, str]
    """Short name → folder."""
    default_dictionary: str
    corpus: str
    seed: int | None = None
    """What it was built from; for the record."""
    sha256: dict[str, str]
    """Relative path → hex digest of every file that ships."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where the parts of a subject lie, and how they are called."""

    name: str
    language: str | None
    model: Path
    dictionary: Path
    corpus: Path
    shown_from: Path | None
    """Paths are recorded relative to this, so that a bundled subject is named alike on every machine."""

    def shown(self, path: Path) -> str:
        if self.shown_from is not None and path.is_relative_to(self.shown_from):
            return f"{self.name}/{path.relative_to(self.shown_from).as_posix()}"
        return str(path)


def load_subject(subject: Path | None, dictionary: Path | None, corpus: Path | None, *, observer: Observer) -> Subject:
    """Open and check a subject.

    Args:
        subject: an organism's folder or a plain transformers directory; None for the bundled organism.
        dictionary: a dictionary's folder or, for an organism, the short name of one of its own; None for its default.
        corpus: a JSON-lines file of ``{"text": ...}``; None for the organism's own.
        observer: told of each part.

    Raises:
        SubjectError: something is missing, damaged or does not fit.
        UsageError: a plain model without a dictionary or a corpus, or a corpus that is not of that form.
    """
    places = _find(subject, dictionary, corpus)
    steps = ("model", "dictionary", "corpus", "health")

    def begin(part: str) -> None:
        check_stop(observer)
        observer.notify(StepProgress("subject", steps.index(part), len(steps), part))

    begin("model")
    model = open_model(places.model)
    begin("dictionary")
    features = open_dictionary(places.dictionary, model.d_model)
    _check_layers(features, model)
    begin("corpus")
    documents = tokenise(model, read_corpus(places.corpus))
    begin("health")
    return Subject(model=model, dictionary=features, info=_info(places, model, features, documents), corpus=documents)


def _find(subject: Path | None, dictionary: Path | None, corpus: Path | None) -> _Places:
    folder = bundled.folder() if subject is None else subject
    if not folder.is_dir():
        raise SubjectError("No subject", f"There is no directory '{folder}'.", "Give a transformers directory, or leave --subject out.")
    if (folder / MANIFEST).is_file():
        return _organism(folder, dictionary, corpus)
    if dictionary is None or corpus is None:
        lacking = " and ".join(option for option, value in (("--dictionary", dictionary), ("--corpus", corpus)) if value is None)
        raise UsageError(
            "Not enough to audit", f"'{folder}' is a plain model: it brings no dictionary and no corpus of its own.", f"Give {lacking}."
        )
    return _Places(name=folder.resolve().name, language=None, model=folder, dictionary=dictionary, corpus=corpus, shown_from=None)


def _organism(folder: Path, dictionary: Path | None, corpus: Path | None) -> _Places:
    manifest = _manifest(folder)
    _verify(folder, manifest)
    short = manifest.default_dictionary if dictionary is None else str(dictionary)
    own = manifest.dictionaries.get(short)
    if own is None and dictionary is None:
        raise SubjectError("The subject is broken", f"{MANIFEST} names no dictionary '{short}'.", "Build or copy the subject again.")
    return _Places(
        name=manifest.name,
        language=manifest.language,
        model=folder / manifest.model,
        dictionary=folder / own if own is not None else Path(short),
        corpus=folder / manifest.corpus if corpus is None else corpus,
        shown_from=folder,
    )


def _manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise SubjectError(
            "The subject is broken",
            f"{MANIFEST} in '{folder}': {'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}.",
            "Build or copy the subject again.",
        ) from error


def _verify(folder: Path, manifest: Manifest) -> None:
    for name, digest in manifest.sha256.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != digest:
            state = "has changed since it was made" if path.is_file() else "is missing"
            instead = "Copy or install the subject again; it cannot be trusted as it is."
            raise SubjectError("The subject is damaged", f"'{path}' {state}.", instead)


def _check_layers(dictionary: Dictionary, model: LanguageModel) -> None:
    if dictionary.n_layers != model.n_layers:
        raise SubjectError(
            "The dictionary does not fit the model",
            f"It has {dictionary.n_layers} layers, but the model has {model.n_layers}.",
            "Use the dictionary that was trained on this model.",
        )


def _info(places: _Places, model: LanguageModel, dictionary: Dictionary, documents: Sequence[Sequence[int]]) -> SubjectInfo:
    measured = health.measure(model, dictionary, _sample(documents, HEALTH_DOCUMENTS))
    health.check(measured)
    return SubjectInfo(
        name=places.name,
        language=places.language or ("chat" if model.has_chat_template else "text"),
        architecture=model.architecture,
        model_path=places.shown(places.model),
        model_sha256=model_sha256(places.model),
        dictionary_path=places.shown(places.dictionary),
        dictionary_kind=dictionary.kind,
        dictionary_sha256=dictionary.sha256,
        corpus_sha256=file_sha256(places.corpus),
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_parameters=model.n_parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        health=measured,
        parity_max_difference=parity(model, documents[0]),
    )


def _sample(documents: Sequence[Sequence[int]], n: int) -> list[Sequence[int]]:
    """Documents spread evenly over the corpus, which may be sorted by kind."""
    step = max(1, -(-len(documents) // n))
    return list(documents[::step])


def parity(model: LanguageModel, document: Sequence[int]) -> float:
    """Largest logit difference between the model with every hook point recorded and without.

    Raises:
        SubjectError: recording changes what the model computes.
    """
    ids = torch.tensor([list(document)], device=model.device)
    sites = [(layer, name) for layer in range(model.n_layers) for name in NAMES]
    with torch.inference_mode():
        plain = model.forward(ids)
        with capture(model, sites):
            hooked = model.forward(ids)
    difference = float((plain - hooked).abs().max())
    if not difference <= PARITY_LIMIT:
        raise SubjectError(
            "Recording changes the model",
            f"With hooks that only read, the logits differ by {difference:.2g}.",
            "Check that the weights hold no numbers that are not finite, and report this.",
        )
    return difference
