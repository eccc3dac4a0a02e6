"""How an atlas lies on disk: one table a layer and side, as safetensors, and what its header says. The standard library alone.

``source-<layer>.safetensors`` holds the targets of the layer's features, ``target-<layer>.safetensors`` their sources. The metadata of a
table names the other layers that are merged into it, so that the table itself says what it holds, whatever was written beside it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from audit.errors import UsageError

Side = Literal["source", "target"]
"""Which end of its connections a table's features are."""
COLUMNS = {
    "virtual_weight": ("F32", "f", 4),
    "era": ("F32", "f", 4),
    "twera": ("F32", "f", 4),
    "index": ("I32", "i", 4),
    "n_coactive": ("I32", "i", 4),
    "layer": ("I16", "h", 2),
}
"""Per neighbour: dtype in the file, its ``struct`` letter, bytes. Each is (n_features, 2 · top): first positive, then negative TWERA."""
COUNTS = {"n_firing": ("I64", "q", 8), "n_unsupported": ("I64", "q", 8)}
"""Per feature: (n_features,)."""
NONE = -1
"""Layer of a place that no neighbour fills."""
NEIGHBOUR_BYTES = sum(n_bytes for _, _, n_bytes in COLUMNS.values())
LARGEST_HEADER = 1 << 20
"""Bytes; a header of an atlas takes about a thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a table's header says, found to be true of the length of the file."""

    path: Path
    begins: Mapping[str, int]
    """Name of a tensor → its first byte in the file."""
    merged: frozenset[int]
    """Other layers whose features are in the table."""
    key: str
    """Digest of the atlas's key."""


def table_name(side: Side, layer: int) -> str:
    """Name of a layer's table."""
    return f"{side}-{layer}.safetensors"


def shapes(n_features: int, top: int) -> dict[str, tuple[str, list[int], int]]:
    """Tensors of a table in the order of the file: name → dtype, shape, bytes."""
    counts = {name: (dtype, [n_features], n_features * size) for name, (dtype, _, size) in COUNTS.items()}
    width = 2 * top
    return counts | {name: (dtype, [n_features, width], n_features * width * size) for name, (dtype, _, size) in COLUMNS.items()}


def header_bytes(n_features: int, top: int, merged: frozenset[int], key: str) -> bytes:
    """Length and header of a table's file; what follows are its tensors, without gaps."""
    header: dict[str, object] = {"__metadata__": {"key": key, "merged": json.dumps(sorted(merged))}}
    at = 0
    for name, (dtype, shape, n_bytes) in shapes(n_features, top).items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n_bytes]}
        at += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(descriptor: int, path: Path, n_features: int, top: int) -> Header:
    """The header of a table's open file, compared with what it must hold and with the length of the file.

    Raises:
        UsageError: it says something else, or the file is shorter or longer than it says.
    """
    n_bytes = os.fstat(descriptor).st_size
    first = os.pread(descriptor, 8, 0)
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    if not 0 < length <= LARGEST_HEADER:
        raise damaged(path, f"it is {n_bytes} bytes long and does not begin with the length of a header")
    found = _parsed(os.pread(descriptor, length, 8), path)
    wanted, at, begins = shapes(n_features, top), 0, {}
    for name, (dtype, shape, size) in wanted.items():
        should = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        if found.get(name) != should:
            raise damaged(path, f"its header has {found.get(name)} for '{name}', expected {should}")
        begins[name] = 8 + length + at
        at += size
    if n_bytes != 8 + length + at:
        raise damaged(path, f"it is {n_bytes} bytes long, its header expects {8 + length + at}")
    key, merged = _metadata(found.get("__metadata__"), path)
    return Header(path=path, begins=begins, merged=merged, key=key)


def damaged(path: Path, why: str) -> UsageError:
    """That a file of an atlas is not as it was written."""
    return UsageError("The atlas is damaged", f"{path}: {why}.", "Copy the folder again, or delete it and run `ulterior atlas build`.")


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, "its header is not JSON") from error
    if not isinstance(found, dict):
        raise damaged(path, "its header is no JSON object")
    return found


def _metadata(found: Any, path: Path) -> tuple[str, frozenset[int]]:
    """Digest of the key, and layers merged."""
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in ("key", "merged")):
        raise damaged(path, "its header does not say of which atlas it is and what is merged into it")
    try:
        merged = json.loads(found["merged"])
    except (ValueError, RecursionError) as error:
        raise damaged(path, "the list of layers merged into it is not JSON") from error
    if not isinstance(merged, list) or not all(type(layer) is int for layer in merged):
        raise damaged(path, "what is merged into it is no list of layers")
    return found["key"], frozenset(merged)
