"""One process at a time writes an atlas."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit.errors import AuditError, UsageError

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file that a process holds; it stays, empty, when it is given free."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes out of an atlas for as long as the block runs; a process that dies gives it free.

    Args:
        folder: of the atlas; made if it is not there.

    Raises:
        UsageError: another process has it.
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("wb") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                why = f"Another process builds the atlas in '{folder}'."
                raise UsageError("The folder is in use", why, "Wait until it has ended, or give another --out.") from error
            except OSError:  # a file system without locks
                pass
        yield


def unwritable(folder: Path, error: OSError) -> AuditError:
    """That a file of an atlas cannot be written."""
    why = f"{error.filename or folder}: {error.strerror or error}."
    return AuditError("The atlas cannot be written", why, "Make room or give another --out; the same command goes on.")
