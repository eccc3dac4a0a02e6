"""One pass of a subject over a corpus, shard by shard; what is finished is kept whatever happens to the process."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from audit.corpus.activations import packed, shard_path
from audit.corpus.artefact import SHARDS, write_artefact
from audit.corpus.counting import count
from audit.corpus.documents import Ragged
from audit.corpus.files import claimed, read_arrays, write_arrays
from audit.corpus.identity import key_of
from audit.corpus.layout import FORMAT_VERSION, head_of, pack, unpack
from audit.corpus.ownership import refuse_other_statistics, remove_unlisted
from audit.corpus.shards import MAX_SHARD_TOKENS, SHARD_TOKENS, Shard, shards
from audit.corpus.statistics import Statistics, empty, merge
from audit.errors import SubjectError, UsageError
from audit.events import Observer, StepProgress, check_stop
from audit.records.names import FeatureId
from audit.records.statistics import CorpusSource, ShardEntry, StatisticsKey, StatisticsManifest
from audit.subject.activations import observe
from audit.subject.corpus import stream_corpus
from audit.subject.digests import file_sha256
from audit.subject.loading import Subject

STEP = "statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanPlan:
    """How a corpus is gone through."""

    candidates: tuple[FeatureId, ...] = ()
    """Whose co-activations with features of later layers are kept."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens, special ones included, after which a shard ends with its document."""
    batch_tokens: int = 4096
    """Tokens in a forward pass; with 1, every document goes alone, and its activations depend on nothing else."""
    keep_activations: bool = True
    """Whether shard files hold every activation, for ``open_activations``."""


@dataclass(slots=True, kw_only=True)
class _Pace:
    """How fast shards are made; those that were there already say nothing about that."""

    total: int
    """Bytes of the corpus."""
    end: int = 0
    """Bytes of it that are done."""
    n_shards: int = 0
    n_bytes: int = 0
    """Bytes that were gone through with the model."""
    n_tokens: int = 0
    """Content tokens likewise."""
    seconds: float = 0.0
    """Spent on that."""

    def advance(self, shard: Shard, n_tokens: int, seconds: float | None) -> StepProgress:
        """Take in a shard; ``seconds`` is None for one that was there."""
        if seconds is not None:
            self.n_bytes += shard.end - self.end
            self.n_tokens += n_tokens
            self.seconds += seconds
        self.end = shard.end
        self.n_shards += 1
        return StepProgress(STEP, self.end, self.total, self._label())

    def _label(self) -> str:
        done = f"{self.n_shards} shard{'' if self.n_shards == 1 else 's'}"
        if not self.n_bytes or self.seconds <= 0:
            return done
        left = (self.total - self.end) * self.seconds / self.n_bytes
        return f"{done}, {self.n_tokens / self.seconds:,.0f} tokens/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def scan(subject: Subject, corpus: Path, folder: Path, *, plan: ScanPlan = ScanPlan(), observer: Observer) -> StatisticsManifest:  # noqa: B008 - frozen
    """Build the statistics of a corpus in a folder; shards that are there, whole and of the same subject and candidates are not made again.

    Statistics of the same subject and corpus that the folder holds are replaced, and shards that only they list are removed.

    Args:
        subject: the model and its dictionary; its own corpus is not looked at.
        corpus: a text, as ``stream_corpus`` reads it.
        folder: made if it is not there.
        plan: how.
        observer: told after each shard, in bytes of the corpus; may stop between forward passes.

    Raises:
        UsageError: the corpus or the plan is wrong, the folder holds something else, or another process works in it.
        SubjectError: an activation is not a finite number.
        AuditError: a file cannot be written.
        Interrupted: the user stopped it; finished shards are kept.
    """
    if not 1 <= plan.shard_tokens <= MAX_SHARD_TOKENS:
        raise UsageError("Wrong size of a shard", f"{plan.shard_tokens} tokens were asked for.", f"Give 1 to {MAX_SHARD_TOKENS}.")
    job = _Job(subject=subject, key=key_of(subject, plan.candidates), folder=folder, plan=plan)
    job.replaces(corpus)  # before the folder is touched
    with claimed(folder / SHARDS):
        replaces = job.replaces(corpus)  # another process may have written there meanwhile
        found, entries = _pass(job, corpus, observer)
        if not found.n_tokens:
            why = f"The documents of '{corpus}' hold no tokens that count."
            raise UsageError("The corpus is empty", why, "Give text with words in it.")
        written = write_artefact(folder, found, job.manifest(corpus, entries))
        if replaces:
            remove_unlisted(folder, written)
        return written


def _source(corpus: Path) -> CorpusSource:
    try:
        return CorpusSource(name=corpus.name, sha256=file_sha256(corpus))
    except OSError as error:
        raise UsageError("The corpus cannot be read", f"'{corpus}': {error}", "Name a text file that can be read.") from error


def _pass(job: _Job, corpus: Path, observer: Observer) -> tuple[Statistics, tuple[ShardEntry, ...]]:
    """Statistics of the whole corpus, and its shards in order."""
    found, entries = empty(job.key), []
    pace = _Pace(total=corpus.stat().st_size if corpus.is_file() else 0)
    for shard in shards(job.subject.model, stream_corpus(corpus), job.key, job.plan.shard_tokens):
        check_stop(observer)
        one, seconds = job.finished(shard), None
        if one is None:
            began = time.monotonic()
            one = job.made(shard, observer)
            seconds = time.monotonic() - began
        found = merge(found, one)
        entries.append(ShardEntry(sha256=shard.sha256, n_tokens=one.n_tokens, n_documents=one.n_documents))
        observer.notify(pace.advance(shard, one.n_tokens, seconds))
    return found, tuple(entries)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What every shard of a pass shares."""

    subject: Subject
    key: StatisticsKey
    folder: Path
    plan: ScanPlan

    def finished(self, shard: Shard) -> Statistics | None:
        """Statistics of a shard that is there; None if it has to be made."""
        path = shard_path(self.folder, shard.sha256)
        if not path.is_file():
            return None
        try:
            content = read_arrays(path)
            head = head_of(content, path)
            fits = head.key == self.key and head.shards == (shard.sha256,) and (head.has_activations or not self.plan.keep_activations)
            return unpack(content, path) if fits else None
        except SubjectError:  # torn or damaged, and therefore not done
            return None

    def made(self, shard: Shard, observer: Observer) -> Statistics:
        """Run the model over a shard, and write what was found."""
        activations = observe(
            self.subject.model,
            self.subject.dictionary,
            shard.documents,
            batch_tokens=self.plan.batch_tokens,
            progress=lambda _done, _total: check_stop(observer),
        )
        made = count(activations, shard.documents, self.key, shard.sha256)
        further = packed(activations, Ragged.of(shard.documents)) if self.plan.keep_activations else None
        write_arrays(shard_path(self.folder, shard.sha256), pack(made, further))
        return made

    def replaces(self, corpus: Path) -> bool:
        """Whether the folder holds statistics of the same subject and corpus; what else it may hold is refused."""
        return corpus.is_file() and refuse_other_statistics(self.folder, self.key, _source(corpus))

    def manifest(self, corpus: Path, entries: tuple[ShardEntry, ...]) -> StatisticsManifest:
        """What ``write_artefact`` completes."""
        return StatisticsManifest(
            format_version=FORMAT_VERSION,
            ulterior_version="",
            subject=self.subject.info.name,
            model_path=self.subject.info.model_path,
            dictionary_path=self.subject.info.dictionary_path,
            key=self.key,
            input_hook=self.subject.dictionary.input_hook,
            output_hook=self.subject.dictionary.output_hook,
            corpora=(_source(corpus),),
            shards_sha256="",
            n_tokens=0,
            n_documents=0,
            shards=entries,
            statistics_sha256="",
            has_activations=self.plan.keep_activations,
        )
