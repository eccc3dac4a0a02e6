"""A folder of statistics: ``statistics.safetensors`` and ``manifest.json``, keyed by what they belong to. Read without a model.

``shards/`` beside them is what a build goes on from, and where activations are kept; it may be deleted before the folder is shipped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from audit.corpus.files import damaged, read_arrays, write_arrays, write_text
from audit.corpus.layout import FORMAT_VERSION, pack, unpack
from audit.corpus.statistics import Statistics, merge, refuse_same_shard
from audit.errors import SubjectError, UsageError
from audit.records.statistics import CorpusSource, StatisticsManifest

if TYPE_CHECKING:
    from audit.subject.loading import Subject

STATISTICS = "statistics.safetensors"
MANIFEST = "manifest.json"
SHARDS = "shards"
PARTS = {
    "model_sha256": "model",
    "dictionary_sha256": "dictionary",
    "template_sha256": "tokenizer or chat template",
    "dtype": "dtype",
    "kind": "kind of dictionary",
    "widths": "widths of the dictionary",
    "divided": "way of weighing co-activations",
}
"""Parts of a key, as people call them."""
_MANIFESTS = TypeAdapter(StatisticsManifest)
_LARGEST_MANIFEST = 1 << 28
"""Bytes: 120 of them name a shard."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Artefact:
    """Statistics with what they belong to."""

    folder: Path
    manifest: StatisticsManifest
    statistics: Statistics


def write_artefact(folder: Path, statistics: Statistics, manifest: StatisticsManifest) -> StatisticsManifest:
    """Write statistics into a folder, the manifest last.

    Args:
        folder: made if it is not there.
        statistics: what is kept.
        manifest: of them; the digests and totals in it are filled in.

    Raises:
        AuditError: a file cannot be written.
    """
    path = folder / STATISTICS
    write_arrays(path, pack(statistics))
    complete = replace(
        manifest,
        format_version=FORMAT_VERSION,
        ulterior_version=_version(),
        shards_sha256=combined(statistics.shards),
        n_tokens=statistics.n_tokens,
        n_documents=statistics.n_documents,
        statistics_sha256=_file_sha256(path),
    )
    write_text(folder / MANIFEST, _MANIFESTS.dump_json(complete, indent=2).decode() + "\n")
    return complete


def combined(shards: Iterable[str]) -> str:
    """Digest of a set of shards: of their digests in order, one a line."""
    return hashlib.sha256("".join(f"{each}\n" for each in sorted(shards)).encode()).hexdigest()


def read_manifest(folder: Path) -> StatisticsManifest:
    """The manifest of a folder of statistics.

    Raises:
        UsageError: there is none, or it is one of something else.
        SubjectError: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        begun = (folder / SHARDS).is_dir()
        why = f"'{folder}' has shards, but its build did not end." if begun else f"'{folder}' has no {MANIFEST}."
        made = "Give a folder that 'ulterior statistics build' made."
        instead = "Run the same 'ulterior statistics build' again; it goes on from there." if begun else made
        raise UsageError("No statistics", why, instead)
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise damaged(path, f"is larger than {_LARGEST_MANIFEST >> 20} MiB")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise damaged(path, f"cannot be read: {error}") from error
    return _manifest(content, path)


def _manifest(content: bytes, path: Path) -> StatisticsManifest:
    try:
        found = _MANIFESTS.validate_json(content)
    except ValidationError as error:
        other = _something_else(content)
        if other is not None:
            instead = "Give a folder that 'ulterior statistics build' made."
            raise UsageError("This folder holds no statistics", f"'{path}' seems to be {other}.", instead) from error
        first = error.errors()[0]
        raise damaged(path, f"cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if found.format_version != FORMAT_VERSION:
        raise damaged(path, f"has format version {found.format_version}, this program reads {FORMAT_VERSION}")
    return found


def _something_else(content: bytes) -> str | None:
    """What a manifest that is none of statistics seems to be; None where it is one that is damaged, or no JSON."""
    try:
        found = from_json(content)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return "JSON of something else"
    if found.keys() & {"statistics_sha256", "shards_sha256"}:
        return None
    if isinstance(found.get("format"), str):
        return f"the manifest of something else: its format is '{found['format'][:40]}'"
    names = ", ".join(f"'{name[:40]}'" for name in list(found)[:4])
    return f"JSON of something else, with {names or 'nothing'} in it"


def open_statistics(folder: Path, subject: Subject | None = None) -> Artefact:
    """Open a folder of statistics, checked against its manifest and, if one is given, against a subject.

    Raises:
        UsageError: there are none.
        SubjectError: they are damaged, or belong to another model, dictionary, template or dtype.
    """
    manifest = read_manifest(folder)
    if subject is not None:
        refuse_other_subject(manifest, subject)
    path = folder / STATISTICS
    if not path.is_file():
        raise damaged(path, "is missing")
    found = _file_sha256(path)
    if found != manifest.statistics_sha256:
        raise damaged(path, f"is not the file of the manifest: its SHA-256 is {found[:16]}, not {manifest.statistics_sha256[:16]}")
    statistics = unpack(read_arrays(path), path)
    if statistics.key != manifest.key or set(statistics.shards) != {each.sha256 for each in manifest.shards}:
        raise damaged(path, "does not belong to the manifest beside it")
    return Artefact(folder=folder, manifest=manifest, statistics=statistics)


def refuse_other_subject(manifest: StatisticsManifest, subject: Subject) -> None:
    """Make sure that statistics belong to a subject.

    Raises:
        SubjectError: they belong to another model, dictionary, template or dtype; says which.
    """
    from audit.corpus.identity import key_of

    theirs, mine = manifest.key, key_of(subject)
    for name in ("model_sha256", "dictionary_sha256", "template_sha256"):
        what, kept, asked = PARTS[name], getattr(theirs, name), getattr(mine, name)
        if kept != asked:
            raise SubjectError(
                f"The statistics belong to another {what}",
                f"They were made for {what} {kept[:16]} of '{manifest.subject}', this subject's is {asked[:16]}.",
                "Open the subject that they were made for, or run 'ulterior statistics build' for this one.",
            )
    if theirs.dtype != mine.dtype:
        raise SubjectError(
            "The statistics belong to another dtype",
            f"They were made in {theirs.dtype}, this subject was opened in {mine.dtype}, which gives other activations.",
            f"Pass --dtype {theirs.dtype}, or run 'ulterior statistics build --dtype {mine.dtype}' into another folder.",
        )


def merge_artefacts(folders: Sequence[Path], out: Path) -> StatisticsManifest:
    """Merge folders of statistics into one.

    Args:
        folders: two or more, of different texts.
        out: a folder that holds no statistics yet.

    Raises:
        UsageError: a folder has no statistics, they are not of the same subject or candidates, a shard is in two of them, or ``out`` holds
            statistics.
        SubjectError: one is damaged.
        AuditError: a file cannot be written.
    """
    if (out / MANIFEST).exists() or (out / SHARDS).exists():
        raise UsageError("Statistics are there already", f"'{out}' holds statistics.", "Give another folder as --out.")
    opened = [open_statistics(folder) for folder in folders]
    for place, one in enumerate(opened):
        for other in opened[:place]:
            refuse_same_shard(other.statistics.shards, one.statistics.shards)
    statistics = reduce(merge, [each.statistics for each in opened])
    manifest = replace(
        opened[0].manifest,
        corpora=_sources(each.manifest for each in opened),
        shards=tuple(sorted((shard for each in opened for shard in each.manifest.shards), key=lambda shard: shard.sha256)),
        has_activations=False,
    )
    return write_artefact(out, statistics, manifest)


def _sources(manifests: Iterable[StatisticsManifest]) -> tuple[CorpusSource, ...]:
    known = {source.sha256: source for manifest in manifests for source in manifest.corpora}
    return tuple(known[sha256] for sha256 in sorted(known))


def _file_sha256(path: Path) -> str:
    # Read each time: a digest that is remembered by size and time of change would not find a damaged file.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version() -> str:
    try:
        return version("ulterior")
    except PackageNotFoundError:
        return "not installed"
