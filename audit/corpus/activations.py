"""The activations of every token that a pass over a corpus kept, so that the model need not run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

from audit.corpus.artefact import SHARDS, read_manifest
from audit.corpus.checking import PREFIX, fault_of
from audit.corpus.documents import Ragged
from audit.corpus.files import Array, damaged, read_arrays, read_some
from audit.corpus.layout import head_of
from audit.errors import UsageError

if TYPE_CHECKING:
    from audit.subject.activations import TokenActivations

Number = TypeVar("Number", np.int32, np.int64, np.float32)


def shard_path(folder: Path, sha256: str) -> Path:
    """Where the shard of that digest lies."""
    return folder / SHARDS / f"{sha256}.safetensors"


def packed(activations: TokenActivations, documents: Ragged) -> dict[str, Array]:
    """Activations of one shard as arrays, with the token ids of its documents."""
    found: dict[str, Array] = {
        f"{PREFIX}.token_ids": activations.token_ids,
        f"{PREFIX}.document": activations.document,
        f"{PREFIX}.position": activations.position,
        f"{PREFIX}.sigma": activations.sigma,
        f"{PREFIX}.documents.ids": documents.ids,
        f"{PREFIX}.documents.ends": documents.ends,
    }
    for layer, matrix in enumerate(activations.layers):
        found[f"{PREFIX}.{layer:03d}.data"] = matrix.data.astype(np.float32, copy=False)
        found[f"{PREFIX}.{layer:03d}.indices"] = matrix.indices.astype(np.int32, copy=False)
        found[f"{PREFIX}.{layer:03d}.indptr"] = matrix.indptr.astype(np.int64)
    return found


def open_activations(folder: Path) -> TokenActivations:
    """Activations on all content tokens of the corpus, in its order; ``document`` counts ``open_documents``.

    Raises:
        UsageError: there are no statistics, or no activations were kept.
        SubjectError: a shard is damaged.
    """
    from audit.subject.activations import TokenActivations

    widths, paths = read_manifest(folder).key.widths, _whole_shards(folder)
    ends = [len(_of(path, "documents.ends", np.int64)) for path in paths]
    first = np.cumsum([0, *ends], dtype=np.int32)
    # Layer by layer, so that no more than one layer is in memory twice.
    return TokenActivations(
        token_ids=np.concatenate([_of(path, "token_ids", np.int32) for path in paths]),
        document=np.concatenate([_of(path, "document", np.int32) + start for path, start in zip(paths, first, strict=False)]),
        position=np.concatenate([_of(path, "position", np.int32) for path in paths]),
        layers=tuple(
            csr_matrix(vstack([_layer(path, layer, width) for path in paths], format="csr")) for layer, width in enumerate(widths)
        ),
        sigma=np.concatenate([_of(path, "sigma", np.float32) for path in paths]),
    )


def open_documents(folder: Path) -> tuple[tuple[int, ...], ...]:
    """Token ids of the documents of the corpus, in its order.

    Raises:
        UsageError: there are no statistics, or no activations were kept.
        SubjectError: a shard is damaged.
    """
    kept = (Ragged(ids=_of(path, "documents.ids", np.int32), ends=_of(path, "documents.ends", np.int64)) for path in _whole_shards(folder))
    return tuple(tuple(part.document(place).tolist()) for part in kept for place in range(len(part)))


def _whole_shards(folder: Path) -> list[Path]:
    """Shards with activations, each read through and checked once, in the order of the corpus."""
    manifest = read_manifest(folder)
    paths = [shard_path(folder, each.sha256) for each in manifest.shards]
    lacking = [path for path in paths if not path.is_file()]
    if not manifest.has_activations or lacking:
        why = f"'{lacking[0]}' is missing." if manifest.has_activations else "They were built with --drop-activations, or merged."
        raise UsageError("No activations", f"'{folder}' has statistics only. {why}", "Build statistics without --drop-activations.")
    for path in paths:
        content = read_arrays(path)
        head = head_of(content, path)
        if not head.has_activations or head.key != manifest.key:
            raise damaged(path, "was made by another build")
        fault = fault_of(content.arrays, manifest.key.widths)
        if fault is not None:
            raise damaged(path, fault)
    return paths


def _of(path: Path, name: str, dtype: type[Number]) -> NDArray[Number]:
    (array,) = read_some(path, [f"{PREFIX}.{name}"])
    return array.astype(dtype, copy=False)


def _layer(path: Path, layer: int, width: int) -> csr_matrix:
    data, indices, indptr = read_some(path, [f"{PREFIX}.{layer:03d}.{part}" for part in ("data", "indices", "indptr")])
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, width))
