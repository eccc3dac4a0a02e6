"""Whether the activations that a shard kept are what they say: checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

PREFIX = "kept"
"""What the names of a shard's activations begin with."""
_COLUMNS = {
    "token_ids": (np.int32, 1),
    "document": (np.int32, 1),
    "position": (np.int32, 1),
    "sigma": (np.float32, 2),
    "documents.ids": (np.int32, 1),
    "documents.ends": (np.int64, 1),
}
"""Type and number of axes."""
_LAYER = {"data": (np.float32, 1), "indices": (np.int32, 1), "indptr": (np.int64, 1)}


def fault_of(arrays: Mapping[str, Any], widths: Sequence[int]) -> str | None:
    """What is wrong with a shard's activations.

    Args:
        arrays: of the shard, by name.
        widths: features of each layer.

    Returns:
        The first fault, to be read behind the file's name; None where there is none.
    """
    return next(_faults(arrays, widths), None)


def _faults(arrays: Mapping[str, Any], widths: Sequence[int]) -> Iterator[str]:
    """Every check may rely on those before it, since only the first fault is asked for."""
    wanted = dict(_COLUMNS)
    wanted |= {f"{layer:03d}.{part}": form for layer in range(len(widths)) for part, form in _LAYER.items()}
    for name, (dtype, axes) in wanted.items():
        array = arrays.get(f"{PREFIX}.{name}")
        if array is None:
            yield f"lacks the array '{PREFIX}.{name}'"
        elif array.dtype != dtype or array.ndim != axes:
            form = f"{np.dtype(dtype)} of {axes} ax{'i' if axes == 1 else 'e'}s"
            yield f"has '{PREFIX}.{name}' of {array.dtype} {list(array.shape)}, expected {form}"
    columns = {name: arrays[f"{PREFIX}.{name}"] for name in _COLUMNS}
    yield from _of_documents(columns["documents.ids"], columns["documents.ends"])
    yield from _of_tokens(columns, len(widths))
    yield from _of_sigma(columns["sigma"])
    for layer, width in enumerate(widths):
        parts = {part: arrays[f"{PREFIX}.{layer:03d}.{part}"] for part in _LAYER}
        for fault in _of_layer(parts, len(columns["token_ids"]), width):
            yield f"has activations of layer {layer} that are no matrix of {width} features: {fault}"


def _of_documents(ids: Any, ends: Any) -> Iterator[str]:
    bounds = np.concatenate([[0], ends])
    if (bounds[1:] < bounds[:-1]).any() or bounds[-1] != len(ids):
        yield "has documents whose ends are not those of their tokens"
    if (ids < 0).any():
        yield "has a token id below 0"


def _of_tokens(columns: Mapping[str, Any], n_layers: int) -> Iterator[str]:
    token_ids, document, position, sigma = (columns[name] for name in ("token_ids", "document", "position", "sigma"))
    n, ends = len(token_ids), columns["documents.ends"]
    if not len(document) == len(position) == n:
        yield f"has columns of {n}, {len(document)} and {len(position)} tokens, expected as many in each"
    if sigma.shape != (n, n_layers + 1):
        yield f"has sigma of {list(sigma.shape)}, expected [{n}, {n_layers + 1}]"
    if n and (document.min() < 0 or document.max() >= len(ends)):
        yield f"has tokens of documents {document.min()} to {document.max()}, expected 0 to {len(ends) - 1}"
    lengths = np.diff(ends, prepend=0)
    if ((position < 0) | (position >= lengths[document])).any():
        yield "has tokens at positions outside their documents"
    rises = np.diff(document)
    if ((rises < 0) | ((rises == 0) & (np.diff(position) <= 0))).any():
        yield "has tokens that are not in the order of their documents and positions, each once"
    if (columns["documents.ids"][(ends - lengths)[document] + position] != token_ids).any():
        yield "has token ids that are not those of its documents"


def _of_sigma(sigma: Any) -> Iterator[str]:
    if not (np.isfinite(sigma) & (sigma > 0)).all():
        yield "has sigma that is not finite and above 0"


def _of_layer(parts: Mapping[str, Any], n_tokens: int, width: int) -> Iterator[str]:
    data, indices, indptr = parts["data"], parts["indices"], parts["indptr"]
    if len(indptr) != n_tokens + 1:
        yield f"it has {len(indptr) - 1} rows, expected {n_tokens}"
    if len(data) != len(indices):
        yield f"it has {len(data)} activations and {len(indices)} indices"
    if indptr[0] != 0 or indptr[-1] != len(data) or (indptr[1:] < indptr[:-1]).any():
        yield f"the bounds of its rows do not rise from 0 to {len(data)}"
    if len(indices) and (indices.min() < 0 or indices.max() >= width):
        yield f"its indices are {indices.min()} to {indices.max()}, expected 0 to {width - 1}"
    begins = np.zeros(len(indices) + 1, dtype=np.bool_)
    begins[indptr] = True
    if ((np.diff(indices) <= 0) & ~begins[1:-1]).any():
        yield "the indices of a row do not rise"
    if not (np.isfinite(data) & (data > 0)).all():
        yield "an activation is not finite and above 0"
