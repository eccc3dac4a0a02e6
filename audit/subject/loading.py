"""Opening what is to be audited: model, dictionary and corpus, checked against each other."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from audit.errors import SubjectError, UsageError
from audit.events import Observer, StepProgress, check_stop
from audit.records import SubjectInfo
from audit.subject import bundled, health, hub
from audit.subject.architecture import NAMES
from audit.subject.checkpoint import Dtype
from audit.subject.corpus import read_corpus, tokenise
from audit.subject.dictionary import Dictionary
from audit.subject.digests import combined_sha256, digests_of, file_sha256, model_files
from audit.subject.formats import open_dictionary
from audit.subject.hookpoints import capture
from audit.subject.model import LanguageModel, open_model

MANIFEST = "ulterior.json"
HEALTH_DOCUMENTS = 200
PROBE_TOKENS = 256
"""Tokens that parity is tested on: every hook point of every layer is held."""
STEPS = ("model", "dictionary", "corpus", "health", "digests")
Documents = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a subject is opened."""

    dtype: str = "auto"
    """Of the model: ``auto`` (as its files have it), ``float32``, ``bfloat16`` or ``float16``."""
    device: str = "cpu"
    """Such as ``cpu`` or ``cuda:0``; ``auto`` spreads a model over all there is."""
    accept_health: bool = False
    """Go on although the dictionary looks as if it were loaded wrong; the report says so."""


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
class Places:
    """Where the parts of a subject lie, and how they are called."""

    name: str
    language: str | None
    model: Path
    dictionary: Path | None
    """None where only the model was named."""
    corpus: Path | None
    shown_from: Path | None
    """Paths are recorded relative to this, so that a bundled subject is named alike on every machine."""
    model_name: str | None = None
    """As the caller wrote it, where it came from the hub."""
    dictionary_name: str | None = None

    def shown(self, path: Path, name: str | None = None) -> str:
        """How a path is recorded."""
        if name is not None:
            return name
        if self.shown_from is not None and path.is_relative_to(self.shown_from):
            return f"{self.name}/{path.relative_to(self.shown_from).as_posix()}"
        return str(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCorpus:
    """A corpus that someone has gone through already."""

    documents: tuple[tuple[int, ...], ...]
    """Token ids of each."""
    sha256: str
    """What names them."""


def load_subject(
    subject: str | Path | None,
    dictionary: str | Path | None,
    corpus: Path | KeptCorpus | None,
    *,
    opening: Opening = Opening(),  # noqa: B008 - frozen
    observer: Observer,
) -> Subject:
    """Open and check a subject.

    Args:
        subject: an organism's folder, a transformers directory or a hub id (``org/name``, ``org/name@revision``); None for the
            bundled organism.
        dictionary: a dictionary's folder, file or hub id or, for an organism, the short name of one of its own; None for its
            default.
        corpus: a JSON-lines file of ``{"text": ...}``, plain text, or documents that were kept; None for the organism's own.
        opening: dtype, device, and whether a dictionary that looks wrong is accepted.
        observer: told of each part.

    Raises:
        SubjectError: something is missing, damaged or does not fit.
        UsageError: a plain model without a dictionary or a corpus, or a corpus that is not of that form.
    """
    tell = _teller(observer)
    tell("model")
    if hub.Reference.parse(str(subject)) is not None:  # before anything is downloaded
        _refuse_lack(str(subject), dictionary, corpus)
    path = corpus if isinstance(corpus, Path) else None
    texts = None if path is None else read_corpus(path)  # a typing error shows at once
    places = find(subject, dictionary, path, tell)
    _refuse_lack(places.name, places.dictionary, corpus or places.corpus)
    assert places.dictionary is not None
    if texts is None and not isinstance(corpus, KeptCorpus):
        assert places.corpus is not None
        texts = read_corpus(places.corpus)
    model = open_model(places.model, dtype=known_dtype(opening.dtype), device=opening.device)
    tell("dictionary")
    features = open_dictionary(places.dictionary, model.shape)
    tell("corpus")
    documents = _kept(model, corpus) if isinstance(corpus, KeptCorpus) else tokenise(model, texts or ())
    tell("health")
    info = _info(places, model, features, documents, accept=opening.accept_health, tell=tell)
    if isinstance(corpus, KeptCorpus):
        info = replace(info, corpus_sha256=corpus.sha256)
    return Subject(model=model, dictionary=replace(features, sha256=info.dictionary_sha256), info=info, corpus=documents)


def _kept(model: LanguageModel, corpus: KeptCorpus) -> tuple[tuple[int, ...], ...]:
    """Its documents, if they can be the model's."""
    if any(not 0 <= token < model.vocabulary for document in corpus.documents for token in document):
        why = f"They hold tokens that its vocabulary of {model.vocabulary} has not."
        raise SubjectError("The statistics belong to another model", why, "Name the model that they were made with as --subject.")
    return corpus.documents


def _refuse_lack(name: str, dictionary: object, corpus: object) -> None:
    """A plain model needs to be told its dictionary and a corpus."""
    lacking = " and ".join(option for option, value in (("--dictionary", dictionary), ("--corpus", corpus)) if value is None)
    if lacking:
        why = f"'{name}' is a plain model: it brings no dictionary and no corpus of its own."
        raise UsageError("Not enough to audit", why, f"Give {lacking}.")


def known_dtype(name: str) -> Dtype:
    """The name of a dtype.

    Raises:
        UsageError: it is none that models are opened in.
    """
    for known in get_args(Dtype):
        if name == known:
            return cast("Dtype", known)
    raise UsageError("No such dtype", f"'{name}' is not a dtype that models are opened in.", f"Use one of: {', '.join(get_args(Dtype))}.")


def _teller(observer: Observer) -> Callable[[str], None]:
    """Announces a part, or a file of the last part."""
    at = 0

    def tell(part: str) -> None:
        nonlocal at
        check_stop(observer)
        at = STEPS.index(part) if part in STEPS else at
        observer.notify(StepProgress("subject", at, len(STEPS), part))

    return tell


def find(
    subject: str | Path | None,
    dictionary: str | Path | None,
    corpus: Path | None,
    tell: Callable[[str], None] = lambda _: None,
    *,
    offline: bool = False,
) -> Places:
    """Where everything lies, fetched from the hub where a hub id is given, unless ``offline``.

    Raises:
        SubjectError: something is not there.
    """
    named = hub.Reference.parse(str(subject)) if subject is not None else None
    folder = bundled.folder() if subject is None else hub.fetch_model(named, tell, offline=offline) if named is not None else Path(subject)
    if not folder.is_dir():
        raise SubjectError("No subject", f"There is no directory '{folder}'.", _other_than(folder))
    if (folder / MANIFEST).is_file():
        return _organism(folder, dictionary, corpus, tell, offline)
    features, features_name = _dictionary_at(dictionary, tell, offline)
    return Places(
        name=folder.resolve().name if named is None else str(named),
        language=None,
        model=folder,
        dictionary=features,
        corpus=corpus,
        shown_from=None,
        model_name=None if named is None else str(named),
        dictionary_name=features_name,
    )


def _other_than(folder: Path) -> str:
    """What to give in place of a directory that is not there."""
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, beside, n=3)
    names = f"Did you mean {' or '.join(repr(str(folder.parent / name)) for name in near)}? " if near else ""
    return f"{names}Give a transformers directory or a hub id such as org/name (hf://org/name, where a folder is called org)."


def _dictionary_at(dictionary: str | Path | None, tell: Callable[[str], None], offline: bool) -> tuple[Path | None, str | None]:
    """Path of a dictionary, and its name if it came from the hub."""
    if dictionary is None:
        return None, None
    reference = hub.Reference.parse(str(dictionary))
    return (Path(dictionary), None) if reference is None else (hub.fetch_dictionary(reference, tell, offline=offline), str(reference))


def _organism(folder: Path, dictionary: str | Path | None, corpus: Path | None, tell: Callable[[str], None], offline: bool) -> Places:
    manifest = _manifest(folder)
    _verify(folder, manifest)
    short = manifest.default_dictionary if dictionary is None else str(dictionary)
    own = manifest.dictionaries.get(short)
    if own is None and dictionary is None:
        raise SubjectError("The subject is broken", f"{MANIFEST} names no dictionary '{short}'.", "Build or copy the subject again.")
    features, name = (folder / own, None) if own is not None else _dictionary_at(short, tell, offline)
    return Places(
        name=manifest.name,
        language=manifest.language,
        model=folder / manifest.model,
        dictionary=features,
        corpus=folder / manifest.corpus if corpus is None else corpus,
        shown_from=folder,
        dictionary_name=name,
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


def _info(
    places: Places, model: LanguageModel, dictionary: Dictionary, documents: Documents, *, accept: bool, tell: Callable[[str], None]
) -> SubjectInfo:
    assert places.dictionary is not None
    difference = parity(model, documents[0][:PROBE_TOKENS])
    probe, probe_name = health_documents(model, documents)
    measured = health.measure(model, dictionary, probe)
    found = health.check(model, dictionary, probe, measured, accept=accept)
    tell("digests")
    of_model = digests_of(places.model, model_files(places.model), tell)
    root = places.dictionary if places.dictionary.is_dir() else places.dictionary.parent
    of_dictionary = digests_of(root, dictionary.files, tell)
    return SubjectInfo(
        name=places.name,
        language=places.language or ("chat" if model.has_chat_template else "text"),
        architecture=model.architecture,
        model_path=places.shown(places.model, places.model_name),
        model_sha256=combined_sha256(of_model),
        model_revision=hub.commit_of(places.model),
        dictionary_path=places.shown(places.dictionary, places.dictionary_name),
        dictionary_kind=dictionary.kind,
        dictionary_sha256=combined_sha256(of_dictionary, reading(dictionary)),
        dictionary_revision=hub.commit_of(places.dictionary),
        dictionary_format=dictionary.format,
        dictionary_dtype=" and ".join(sorted({str(dictionary.at(each).W_enc.dtype).removeprefix("torch.") for each in dictionary.present})),
        input_hook=dictionary.input_hook,
        output_hook=dictionary.output_hook,
        b_dec_rule=b_dec_rule(dictionary),
        made_from=dictionary.made_from,
        corpus_sha256="" if places.corpus is None else file_sha256(places.corpus),
        n_layers=model.n_layers,
        d_model=model.d_model,
        n_parameters=model.n_parameters,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        folds_system=model.has_chat_template and model.folds_system,
        health=measured,
        parity_max_difference=difference,
        model_files=of_model,
        dictionary_files=of_dictionary,
        health_text=probe_name,
        health_tokens=int(sum(int(model.content_mask(torch.tensor([list(ids)])).sum()) for ids in probe)),
        health_problems=found.problems,
        health_warnings=found.warnings,
    )


def reading(dictionary: Dictionary) -> str:
    """How the files are read, in a line: two readings of the same file are two dictionaries."""
    layers = ", ".join(f"{layer} {dictionary.at(layer).activation}" for layer in dictionary.present)
    hooks = f"{dictionary.input_hook} -> {dictionary.output_hook}"
    return f"{dictionary.format}, {dictionary.kind}, {hooks}, b_dec {b_dec_rule(dictionary)}, layers {layers}"


def b_dec_rule(dictionary: Dictionary) -> str:
    """What is done with b_dec before encoding, in words."""
    subtracted = {dictionary.at(layer).centre is not None for layer in dictionary.present}
    return {frozenset({True}): "subtracted from the input", frozenset({False}): "not subtracted from the input"}.get(
        frozenset(subtracted), "subtracted from the input of some layers"
    )


def health_documents(model: LanguageModel, corpus: Documents) -> tuple[Documents, str]:
    """What health is measured on, and its name: the shipped text, or the corpus where the tokenizer does not know the text's words.

    Raises:
        UsageError: it does not, and the corpus is empty.
    """
    shipped = health.shipped_documents(model)
    if shipped is not None:
        return shipped, "shipped text"
    if not corpus:
        why = "This model's tokenizer does not know the text that ships for it, or spells it out letter by letter."
        raise UsageError("No text to measure on", why, "Give text in the model's own words with --corpus.")
    return _sample(corpus, HEALTH_DOCUMENTS), "corpus"


def _sample(documents: Documents, n: int) -> list[Sequence[int]]:
    """Documents spread evenly over the corpus, which may be sorted by kind."""
    step = max(1, -(-len(documents) // n))
    return list(documents[::step])


def parity(model: LanguageModel, document: Sequence[int]) -> float:
    """Largest logit difference between the model with every hook point recorded and without: 0, or an error.

    Raises:
        SubjectError: recording changes what the model computes, be it by one bit.
    """
    ids = torch.tensor([list(document)], device=model.device)
    sites = [(layer, name) for layer in range(model.n_layers) for name in NAMES]
    with torch.inference_mode():
        plain = model.forward(ids)
        with capture(model, sites):
            hooked = model.forward(ids)
    difference = float((plain - hooked).abs().max())
    if not difference == 0:
        raise SubjectError(
            "Recording changes the model",
            f"With hooks that only read, the logits differ by {difference:.2g}.",
            "Check that the weights hold no numbers that are not finite, and report this.",
        )
    return difference
