"""One process at a time writes into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit.errors import UsageError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file that a process holds; it stays, empty, when it is given free."""


@contextmanager
def claimed(folder: Path, writer: str) -> Iterator[None]:
    """Keep other processes out of a folder for as long as the block runs; a process that dies gives it free.

    Args:
        folder: made if it is not there.
        writer: what the other process does, in the error: ``builds the atlas in``.

    Raises:
        UsageError: another process has it.
        OSError: it cannot be written; before the block runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("wb") as stream:
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                why = f"Another process {writer} '{folder}'."
                raise UsageError("The folder is in use", why, "Wait until it has ended, or give another --out.") from error
            except OSError:  # a file system without locks
                pass
        yield
