"""One process at a time writes an atlas."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from audit import locking
from audit.errors import AuditError


def claimed(folder: Path) -> AbstractContextManager[None]:
    """``audit.locking.claimed`` of an atlas's folder."""
    return locking.claimed(folder, "builds the atlas in")


def unwritable(folder: Path, error: OSError) -> AuditError:
    """That a file of an atlas cannot be written."""
    why = f"{error.filename or folder}: {error.strerror or error}."
    return AuditError("The atlas cannot be written", why, "Make room or give another --out; the same command goes on.")
