"""Whose statistics a folder holds: a build goes on with its own alone, and never writes over others."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from audit.corpus.artefact import MANIFEST, PARTS, SHARDS, read_manifest
from audit.errors import SubjectError, UsageError
from audit.records.statistics import CorpusSource, StatisticsKey, StatisticsManifest

_ANOTHER = "Give another folder as --out."
_SHARD = re.compile(r"[0-9a-f]{64}\.safetensors")


def refuse_other_statistics(folder: Path, key: StatisticsKey, corpus: CorpusSource) -> bool:
    """Make sure that a build may write into a folder: candidates may differ from those that it holds, nothing else.

    Args:
        folder: of the build; need not be there.
        key: of what is to be built.
        corpus: what it is to be built on.

    Returns:
        Whether the folder holds statistics of the same key and corpus.

    Raises:
        UsageError: it holds something else; says what.
    """
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = read_manifest(folder)
    except UsageError as error:  # something else than statistics
        raise UsageError(error.title, error.why, _ANOTHER) from error
    except SubjectError as error:
        why = f"Whose they are cannot be read. {error.why}"
        raise UsageError("This folder holds statistics", why, f"{_ANOTHER} Or remove the folder if they are of no use.") from error
    differing = [*_of_key(manifest.key, key), *_of_corpora(manifest.corpora, corpus)]
    if differing:
        why = f"Those in '{folder}' are of another {'; another '.join(differing)}."
        raise UsageError("This folder holds other statistics", why, _ANOTHER)
    return True


def remove_unlisted(folder: Path, manifest: StatisticsManifest) -> None:
    """Remove the shards of an earlier build that a manifest does not list."""
    listed = {each.sha256 for each in manifest.shards}
    for path in (folder / SHARDS).iterdir():
        if _SHARD.fullmatch(path.name) and path.stem not in listed:
            with suppress(OSError):  # it takes up space, and does no harm
                path.unlink()


def _of_key(kept: StatisticsKey, asked: StatisticsKey) -> list[str]:
    names = [field.name for field in fields(StatisticsKey) if field.name != "candidates"]
    return [
        f"{PARTS.get(name, name)} ({_short(getattr(kept, name))}, not {_short(getattr(asked, name))})"
        for name in names
        if getattr(kept, name) != getattr(asked, name)
    ]


def _of_corpora(kept: tuple[CorpusSource, ...], asked: CorpusSource) -> list[str]:
    if {each.sha256 for each in kept} == {asked.sha256}:
        return []
    shown = ", ".join(_source(each) for each in kept[:3]) + (f" and {len(kept) - 3} more" if len(kept) > 3 else "")
    return [f"corpus file ({shown or 'none'}, not {_source(asked)})"]


def _source(corpus: CorpusSource) -> str:
    return f"'{corpus.name}' {corpus.sha256[:16]}"


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text[:16] if len(text) == 64 else text if len(text) <= 40 else f"{text[:40]}…"
