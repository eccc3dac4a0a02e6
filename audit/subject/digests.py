"""Hashes by which a reviewer can tell that two people audited the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hex digest of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_sha256(folder: Path, files: Iterable[Path]) -> str:
    """Hex digest of a set of files: of the lines ``digest  relative/path``, in the order of the paths.

    It is the digest of what ``sha256sum`` prints for them, so that it can be checked without this package.
    """
    lines = sorted((path.relative_to(folder).as_posix(), file_sha256(path)) for path in files)
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in lines).encode()).hexdigest()


def model_sha256(folder: Path) -> str:
    """Digest of a transformers directory: its weights, configuration and tokenizer."""
    kept = (".safetensors", ".json", ".jinja", ".model", ".txt")
    return files_sha256(folder, (path for path in folder.iterdir() if path.is_file() and path.suffix in kept))
