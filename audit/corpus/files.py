"""Files that are there whole or not at all: arrays in safetensors, with a digest of their own inside."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from audit import locking
from audit.errors import AuditError, SubjectError

Array = NDArray[np.generic]
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free some space, or give another folder."),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "Give a folder, and one whose path goes through folders alone."),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Allow writing there, or give another folder."),
    errno.EROFS: "Give a folder of a file system that can be written to.",
}
"""What to do, by the number of the error."""
_HEAD = "ulterior"
"""The only key of the metadata: safetensors does not keep the order of several, and equal content shall be equal bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrayFile:
    """What a file of arrays holds."""

    head: str
    """JSON that describes the arrays."""
    arrays: Mapping[str, Array]


def write_arrays(path: Path, content: ArrayFile) -> None:
    """Write a file of arrays; a process that is killed meanwhile leaves the old file, or none.

    Raises:
        AuditError: it cannot be written.
    """
    tensors = {name: np.ascontiguousarray(array) for name, array in content.arrays.items()}
    metadata = {_HEAD: json.dumps({"head": content.head, "sha256": _digest(content.head, tensors)}, sort_keys=True)}
    # Not save_file: it makes files that other users of the machine cannot read.
    _replace(path, save(tensors, metadata))


def write_text(path: Path, text: str) -> None:
    """Write a text file in the same way.

    Raises:
        AuditError: it cannot be written.
    """
    _replace(path, text.encode())


def read_arrays(path: Path) -> ArrayFile:
    """Read a file that ``write_arrays`` wrote.

    Raises:
        SubjectError: there is none, it is torn, or its content has changed.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            about: Any = json.loads((opened.metadata() or {})[_HEAD])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            head, wanted = str(about["head"]), str(about["sha256"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    found = _digest(head, arrays)
    if found != wanted:
        raise damaged(path, f"has changed since it was made: the SHA-256 of its arrays is {found[:16]}, not {wanted[:16]}")
    return ArrayFile(head=head, arrays=arrays)


def read_some(path: Path, names: Sequence[str]) -> tuple[Array, ...]:
    """Some arrays of a file that ``read_arrays`` found whole.

    Raises:
        SubjectError: it cannot be read, or lacks one of them.
    """
    try:
        with safe_open(path, framework="numpy") as opened:
            return tuple(opened.get_tensor(name) for name in names)
    except (OSError, SafetensorError) as error:
        raise damaged(path, f"cannot be read: {error}") from error


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """``audit.locking.claimed`` of a folder of shards.

    Raises:
        UsageError: another process has it.
        AuditError: it cannot be written.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locking.claimed(folder, "writes to"))
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield


def damaged(path: Path, state: str) -> SubjectError:
    """A file of statistics that cannot be trusted."""
    return SubjectError("The statistics are damaged", f"'{path}' {state}.", "Copy them again, or run 'ulterior statistics build' again.")


def _digest(head: str, arrays: Mapping[str, Array]) -> str:
    found = hashlib.sha256(head.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        found.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> AuditError:
    return AuditError("Statistics cannot be written", f"'{path}': {error}", _ADVICE.get(error.errno or 0, "Give another folder."))


def _flush_folder(folder: Path) -> None:
    """Until the folder is on the disk too, a power cut may undo the renaming."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
