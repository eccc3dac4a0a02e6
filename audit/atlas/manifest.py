"""``manifest.json`` of an atlas: its key, and which pairs of layers are done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from audit.atlas.layout import damaged
from audit.errors import UsageError
from audit.plain import plain
from audit.records.atlas import AtlasKey

NAME = "manifest.json"
FORMAT = "ulterior atlas"
VERSION = 1
LONGEST = 200
"""Characters of a value that a message repeats."""
Pair = tuple[int, int]
"""Layers of sources and of targets, the first below the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What it says."""

    key: AtlasKey
    active: tuple[int, ...]
    """Features of each layer that fire on as many tokens as the cut-off asks or more."""
    done: tuple[Pair, ...]
    """In order."""


def all_pairs(widths: Sequence[int]) -> tuple[Pair, ...]:
    """Every pair of an earlier and a later layer that have features, in the order in which they are computed."""
    present = [layer for layer, width in enumerate(widths) if width]
    return tuple((source, target) for source in present for target in present if source < target)


def digest(key: AtlasKey) -> str:
    """What the tables know a key by: SHA-256 in hexadecimal digits."""
    return hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()


def write(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a folder at once."""
    found = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    written = folder / f".{NAME}.part"
    with written.open("wb") as stream:
        stream.write((json.dumps(found, indent=1) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())
    written.replace(folder / NAME)
    sync(folder)


def sync(folder: Path) -> None:
    """Make sure that the names of a folder's files are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        UsageError: there is no such folder, or it holds something else, or a damaged atlas or one of another version.
    """
    path = folder / NAME
    try:
        text = path.read_bytes()
    except OSError as error:
        why = f"There is no directory '{folder}'." if not folder.is_dir() else f"'{path}' cannot be read: {error.strerror}."
        raise UsageError("No atlas", why, "Give a folder that `ulterior atlas build --out FOLDER` has written.") from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _something_else(folder, "which is not JSON") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _something_else(folder, _what(found))
    if found.get("version") != VERSION:
        raise UsageError(
            "Another version of the atlas",
            f"{path} has version {_short(found.get('version'))}, this program reads version {VERSION}.",
            "Build it again into another folder.",
        )
    key = _key(found.get("key"), path)
    active, done = _numbers(found.get("active"), path), _pairs(found.get("done"), path)
    if len(active) != len(key.widths):
        raise damaged(path, f"'active' has {len(active)} layers, expected {len(key.widths)}")
    if len(set(done)) < len(done) or not set(done) <= set(all_pairs(key.widths)):
        raise damaged(path, "'done' names a pair of layers twice, or one that the dictionary does not have")
    return Manifest(key=key, active=active, done=done)


def _something_else(folder: Path, what: str) -> UsageError:
    """That a folder is not an atlas's; nothing in it is to be deleted."""
    why = f"'{folder}' holds no atlas: it has a {NAME} {what}."
    return UsageError("No atlas", why, "Give a folder that `ulterior atlas build --out FOLDER` has written, or a new one to build into.")


def _what(found: Any) -> str:
    """What another manifest is of."""
    if not isinstance(found, dict):
        return "that is no JSON object"
    if "statistics_sha256" in found:
        return "of corpus statistics, which `ulterior statistics build` has written"
    return f"of the format {_short(found['format'])}" if "format" in found else "that names no format"


def refuse_other(folder: Path, there: AtlasKey, wanted: AtlasKey) -> None:
    """Make sure that the atlas that a folder holds is the one that is to be built.

    Raises:
        UsageError: it is another's; says what differs.
    """
    if there == wanted:
        return
    names = [field.name for field in fields(AtlasKey) if getattr(there, field.name) != getattr(wanted, field.name)]
    differing = "; ".join(f"{name} is {_short(getattr(there, name))}, now {_short(getattr(wanted, name))}" for name in names)
    raise UsageError(
        "The folder holds another atlas",
        f"{folder / NAME}: {differing}.",
        "Give another --out, or delete that folder. An atlas is finished with the options, subject and corpus that it was begun with.",
    )


def _short(value: object) -> str:
    """A value as a message has it; it may come from anywhere."""
    text = plain(str(value))
    return f"{text[:12]}…" if len(text) == 64 and " " not in text else f"{text[:LONGEST]}…" if len(text) > LONGEST else text


def _key(found: Any, path: Path) -> AtlasKey:
    names = {field.name: field.type for field in fields(AtlasKey)}
    if not isinstance(found, dict) or set(found) != set(names):
        raise damaged(path, f"its key does not have the fields {', '.join(names)}")
    given = dict(found, widths=_numbers(found["widths"], path))
    for name, kind in names.items():
        if (kind == "int" and (type(given[name]) is not int or given[name] < 0)) or (kind == "str" and not isinstance(given[name], str)):
            raise damaged(path, f"'{name}' of its key is {_short(given[name])}")
    return AtlasKey(**given)


def _numbers(found: Any, path: Path) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(each) is int and each >= 0 for each in found):
        raise damaged(path, "a list of numbers a layer is missing")
    return tuple(found)


def _pairs(found: Any, path: Path) -> tuple[Pair, ...]:
    if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == 2 for each in found):
        raise damaged(path, "the list of pairs of layers that are done is missing")
    return tuple((first, second) for first, second in (_numbers(each, path) for each in found))
