"""A subject that is opened and looked at: what every command begins with, with or without a scenario."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit.candidates.known import Known, open_known
from audit.connections.kept import connect_kept
from audit.corpus import Artefact, open_activations, open_documents, open_statistics
from audit.corpus.artefact import read_manifest
from audit.errors import UsageError
from audit.events import Observer, StepProgress, check_stop, timed
from audit.records import AuditConfig, DownstreamConnections, FeatureId
from audit.subject import KeptCorpus, Opening, Subject, TokenActivations, load_subject, observe
from audit.subject.formats import directions

TOP = 32
"""Targets listed a feature and way of weighing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """A subject and what its features do on the corpus."""

    subject: Subject
    activations: TokenActivations
    known: Known


def open_subject(config: AuditConfig, observer: Observer, asked: Sequence[FeatureId] = ()) -> tuple[Subject, Known]:
    """The model with its dictionary, and what others say of its features.

    Raises:
        UsageError: the dictionary has no such feature as is asked for, or corpus and statistics were both given.
    """
    with timed(observer, "subject") as note:
        opening = Opening(dtype=config.dtype, device=config.device, accept_health=config.accept_health)
        kept = kept_corpus(config)
        subject = load_subject(config.subject, config.dictionary, kept or path_of(config.corpus), opening=opening, observer=observer)
        for feature in asked:  # before the corpus is gone through
            subject.dictionary.check(feature)
        if config.statistics is not None:
            open_statistics(Path(config.statistics), subject)
        known = open_known(config.labels, subject.dictionary.path, subject.dictionary.kind, names_of(subject))
        if known.labels is not None:
            subject = replace(subject, info=replace(subject.info, labels_sha256=known.labels.digest()))
        info = subject.info
        note.summary = f"{info.name}, {info.n_layers} layers, {subject.dictionary.n_features} features ({info.dictionary_kind})"
    return subject, known


def kept_corpus(config: AuditConfig) -> KeptCorpus | None:
    """The documents of statistics; those that examples are in, where no others were kept."""
    if config.statistics is None:
        return None
    if config.corpus is not None:
        raise UsageError("A corpus too many", "Statistics bring the corpus along that they were made on.", "Leave --corpus out.")
    folder = Path(config.statistics)
    manifest = read_manifest(folder)
    documents = open_documents(folder) if manifest.has_activations else _example_documents(open_statistics(folder))
    return KeptCorpus(documents=documents, sha256=manifest.shards_sha256)


def _example_documents(artefact: Artefact) -> tuple[tuple[int, ...], ...]:
    table = artefact.statistics.documents
    return tuple(tuple(table.tokens.document(place).tolist()) for place in range(len(table.tokens)))


def activations_of(config: AuditConfig, subject: Subject, observer: Observer) -> TokenActivations:
    """On the corpus: as statistics have kept them, else from a pass over it."""
    if config.statistics is not None:
        return open_activations(Path(config.statistics))
    return observe(subject.model, subject.dictionary, subject.corpus, progress=told(observer, "corpus"))


def look(config: AuditConfig, observer: Observer, asked: Sequence[FeatureId] = ()) -> Observed:
    """``prepare`` without a scenario."""
    subject, known = open_subject(config, observer, asked)
    with timed(observer, "corpus") as note:
        activations = activations_of(config, subject, observer)
        note.summary = f"{activations.n_tokens} tokens in {len(subject.corpus)} documents"
    return Observed(subject=subject, activations=activations, known=known)


def names_of(subject: Subject) -> dict[FeatureId, str]:
    """What a file of directions calls its features; empty for any other dictionary."""
    if subject.dictionary.format != directions.NAME:
        return {}
    return dict(directions.labels(subject.dictionary.path, subject.model.shape))


def kept_connections(config: AuditConfig, sources: Sequence[FeatureId], observer: Observer, top: int = TOP) -> DownstreamConnections | None:
    """Features → their downstream targets, from statistics without activations; None where there are activations to look at.

    Raises:
        UsageError: the co-activations of a feature were not kept, or effects through attention were asked for.
    """
    if config.statistics is None or read_manifest(Path(config.statistics)).has_activations:
        return None
    if config.through_attention:
        why = f"'{config.statistics}' has no activations to follow through attention."
        raise UsageError("Only what was kept can be shown", why, "Leave --through-attention out, or build statistics with activations.")
    opening = Opening(dtype=config.dtype, device=config.device, accept_health=config.accept_health)
    with timed(observer, "subject") as note:
        subject = load_subject(config.subject, config.dictionary, kept_corpus(config), opening=opening, observer=observer)
        artefact = open_statistics(Path(config.statistics), subject)
        known = open_known(config.labels, subject.dictionary.path, subject.dictionary.kind, names_of(subject))
        note.summary = f"{subject.info.name}, {subject.dictionary.n_features} features ({subject.info.dictionary_kind})"
    with timed(observer, "connections") as note:
        found = connect_kept(subject, artefact, sources, top=top, known=known, observer=observer)
        note.summary = f"{sum(len(each.targets) for each in found.features)} targets on {found.n_tokens} tokens, as they were kept"
    return found


def path_of(text: str | None) -> Path | None:
    """A path that may be missing."""
    return None if text is None else Path(text)


def told(observer: Observer, step: str) -> Callable[[int, int], None]:
    """What tells an observer how far a step is, and stops it."""
    def tell(done: int, total: int) -> None:
        check_stop(observer)
        observer.notify(StepProgress(step, done, total))

    return tell
