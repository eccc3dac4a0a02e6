"""What the features of an atlas fire on: one file of short texts a layer, of which any one is read alone. The standard library alone.

``labels-<layer>.bin`` holds the number of texts n, n + 1 places as little-endian 64-bit numbers, counted from their end, and the texts
in UTF-8 between them. An atlas without such files has no labels.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from audit.atlas.layout import damaged
from audit.atlas.manifest import sync

LONGEST = 1 << 16
"""Bytes of a label."""


def labels_name(layer: int) -> str:
    """Name of a layer's file."""
    return f"labels-{layer}.bin"


def write_labels(folder: Path, layer: int, texts: Sequence[str]) -> None:
    """Replace a layer's file at once; a text that is too long is cut."""
    coded = [text.encode()[:LONGEST] for text in texts]
    ends = [0]
    for one in coded:
        ends.append(ends[-1] + len(one))
    path = folder / labels_name(layer)
    written = path.with_name(f".{path.name}.part")
    with written.open("wb") as stream:
        stream.write(struct.pack(f"<{len(ends) + 1}Q", len(coded), *ends))
        stream.write(b"".join(coded))
        stream.flush()
        os.fsync(stream.fileno())
    written.replace(path)
    sync(folder)


def read_label(folder: Path, layer: int, index: int) -> str:
    """A feature's label; empty where the atlas has none.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / labels_name(layer)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror}") from error
    try:
        head = _read(descriptor, 8, 0, path)
        (n,) = struct.unpack("<Q", head)
        start, stop = struct.unpack("<2Q", _read(descriptor, 16, 8 * (1 + index), path))
        if not (index < n and start <= stop <= start + LONGEST):
            raise damaged(path, f"it has no label {index}")
        return _read(descriptor, stop - start, 8 * (n + 2) + start, path).decode(errors="replace")
    finally:
        os.close(descriptor)


def _read(descriptor: int, n: int, at: int, path: Path) -> bytes:
    """Exactly n bytes of a file."""
    os.lseek(descriptor, at, os.SEEK_SET)
    found = os.read(descriptor, n)
    if len(found) != n:
        raise damaged(path, "it ends too early")
    return found
