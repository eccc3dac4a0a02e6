"""What a dictionary's features do on documents: one pass of the model, kept as sparse matrices.

Only content tokens are kept; BOS, padding, role tokens and the opening of a chat are left out of every statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csc_matrix, csr_matrix
from torch import Tensor

from audit.subject.dictionary import Dictionary
from audit.subject.hookpoints import Site, capture
from audit.subject.model import LanguageModel

if TYPE_CHECKING:
    from audit.scenario import Passage

DENSE_ELEMENTS = 1 << 26
"""Activations held as a dense matrix at once, 256 MiB: bounds the memory on wide dictionaries."""
Progress = Callable[[int, int], None]
"""Called with (documents done, documents in all)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenActivations:
    """Every feature's activation on every content token, by document and position."""

    token_ids: NDArray[np.int32]
    """(n_tokens,)"""
    document: NDArray[np.int32]
    """(n_tokens,) index among the documents that were observed."""
    position: NDArray[np.int32]
    """(n_tokens,) index in its document, special tokens counted."""
    layers: tuple[csr_matrix, ...]
    """(n_tokens, n_features) float32 a layer of the model; no columns where the dictionary has no features."""
    sigma: NDArray[np.float32]
    """(n_tokens, n_layers + 1): denominator of the norm that each layer's MLP reads through, 1 where the dictionary has no features; last,
    that of the norm before the unembedding."""
    _by_feature: dict[int, csc_matrix] = field(init=False, default_factory=dict, repr=False)
    by_layer: dict[int, Any] = field(init=False, default_factory=dict, repr=False)
    """Layer → what ``audit.connections.coactivation`` has summed over all tokens, so that it does so once."""

    @property
    def n_tokens(self) -> int:
        """Content tokens."""
        return int(self.token_ids.shape[0])

    def column(self, layer: int, index: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """One feature: the rows on which it fires, in order, and its activation there."""
        if layer not in self._by_feature:
            self._by_feature[layer] = csc_matrix(self.layers[layer])
        matrix = self._by_feature[layer]
        span = slice(matrix.indptr[index], matrix.indptr[index + 1])
        return matrix.indices[span], matrix.data[span]

    def following(self) -> NDArray[np.int32]:
        """The content token that comes next in the document, (n_tokens,); −1 where another kind of token or none does."""
        follows = (self.document[1:] == self.document[:-1]) & (self.position[1:] == self.position[:-1] + 1)
        found = np.full(self.n_tokens, -1, dtype=np.int32)
        found[:-1][follows] = self.token_ids[1:][follows]
        return found

    def selected(self, rows: NDArray[np.bool_]) -> TokenActivations:
        """Those of some tokens, (n_tokens,), in order."""
        return TokenActivations(
            token_ids=self.token_ids[rows],
            document=self.document[rows],
            position=self.position[rows],
            layers=tuple(layer[rows] for layer in self.layers),
            sigma=self.sigma[rows],
        )

    def counts(self, layer: int) -> NDArray[np.int64]:
        """Number of tokens on which each feature of a layer fires, (n_features,)."""
        return np.bincount(self.layers[layer].indices, minlength=self.layers[layer].shape[1])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ContentBatch:
    """Content tokens of a few documents, with what their hook points held."""

    token_ids: NDArray[np.int32]
    document: NDArray[np.int32]
    position: NDArray[np.int32]
    values: dict[Site, Tensor]
    """(n_tokens, d_model) a site."""
    n_documents: int


def content_batches(
    model: LanguageModel, documents: Sequence[Sequence[int]], sites: Sequence[Site], *, batch_tokens: int = 4096
) -> Iterator[ContentBatch]:
    """Run the model over documents of like length together and read hook points on their content tokens.

    Args:
        model: the model.
        documents: token ids of each, BOS included.
        sites: (layer, name) of the hook points, each once.
        batch_tokens: tokens in a forward pass, padding included; a longer document goes alone.

    Yields:
        batches in the order of document length; within one, by document and position.
    """
    for indices in _groups([len(document) for document in documents], batch_tokens):
        ids, valid = _padded([documents[index] for index in indices])
        rows, columns = torch.nonzero(valid & model.content_mask(ids), as_tuple=True)
        with torch.inference_mode(), capture(model, sites) as found:
            # Padding is on the right, where a causal model cannot see it, so no mask is needed; no logits are either.
            model.backbone(input_ids=ids.to(model.device), use_cache=False)
            values = {site: tensor[rows.to(tensor.device), columns.to(tensor.device)].float() for site, tensor in found.items()}
        yield ContentBatch(
            token_ids=ids[rows, columns].numpy().astype(np.int32),
            document=np.asarray(indices, dtype=np.int32)[rows.numpy()],
            position=columns.numpy().astype(np.int32),
            values=values,
            n_documents=len(indices),
        )


def _groups(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    group: list[int] = []
    for index in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[index] > batch_tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _padded(documents: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(document) for document in documents)
    ids = torch.zeros(len(documents), width, dtype=torch.long)
    valid = torch.zeros(len(documents), width, dtype=torch.bool)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = torch.tensor(document, dtype=torch.long)
        valid[row, : len(document)] = True
    return ids, valid


@dataclass(slots=True)
class _SparseRows:
    """Rows of one layer's matrix, collected batch by batch."""

    counts: list[NDArray[np.int64]] = field(default_factory=list)
    columns: list[NDArray[np.int32]] = field(default_factory=list)
    values: list[NDArray[np.float32]] = field(default_factory=list)

    def add(self, dense: Tensor) -> None:
        active = (dense > 0).numpy()
        flat = np.flatnonzero(active)
        self.counts.append(active.sum(1))
        self.columns.append((flat % active.shape[1]).astype(np.int32))
        self.values.append(dense.numpy().reshape(-1)[flat])

    def matrix(self, n_features: int, n_tokens: int) -> csr_matrix:
        if not self.counts:
            return csr_matrix((n_tokens, n_features), dtype=np.float32)
        counts = np.concatenate([np.zeros(1, dtype=np.int64), *self.counts])
        columns = np.concatenate([np.zeros(0, dtype=np.int32), *self.columns])
        values = np.concatenate([np.zeros(0, dtype=np.float32), *self.values])
        return csr_matrix((values, columns, np.cumsum(counts)), shape=(len(counts) - 1, n_features))


def observe(
    model: LanguageModel,
    dictionary: Dictionary,
    documents: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> TokenActivations:
    """Every feature's activation on every content token of the documents.

    Args:
        model: the model.
        dictionary: its features.
        documents: token ids of each, BOS included.
        batch_tokens: tokens in a forward pass.
        progress: told after each batch; may raise to stop.
    """
    read = [(layer, name) for layer in dictionary.present for name in (dictionary.input_hook, "resid_mid")]
    sites = list(dict.fromkeys([*read, (dictionary.n_layers - 1, "resid_post")]))
    rows = [_SparseRows() for _ in range(dictionary.n_layers)]
    parts: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]] = []
    done = 0
    for batch in content_batches(model, documents, sites, batch_tokens=batch_tokens):
        with torch.inference_mode():
            for layer in dictionary.present:
                for x in torch.split(batch.values[layer, dictionary.input_hook], _tokens_at_once(dictionary, layer)):
                    rows[layer].add(dictionary.encode(layer, x).cpu())
            sigma = _denominators(model, dictionary, batch)
        parts.append((batch.token_ids, batch.document, batch.position, sigma))
        done += batch.n_documents
        if progress is not None:
            progress(done, len(documents))
    n_tokens = sum(len(part[0]) for part in parts)
    return _in_order(parts, [row.matrix(width, n_tokens) for row, width in zip(rows, dictionary.widths, strict=True)])


def _tokens_at_once(dictionary: Dictionary, layer: int) -> int:
    """Tokens whose dense activations are held together."""
    return max(1, DENSE_ELEMENTS // dictionary.widths[layer])


def _denominators(model: LanguageModel, dictionary: Dictionary, batch: ContentBatch) -> NDArray[np.float32]:
    """(n_tokens, n_layers + 1): of each layer's MLP norm, 1 where the dictionary has no features, and of the final norm."""
    found = np.ones((len(batch.token_ids), dictionary.n_layers + 1), dtype=np.float32)
    for layer in dictionary.present:
        found[:, layer] = model.mlp_norm(layer).denominator(batch.values[layer, "resid_mid"]).cpu().numpy()
    found[:, -1] = model.final_norm.denominator(batch.values[dictionary.n_layers - 1, "resid_post"]).cpu().numpy()
    return found


def _in_order(
    parts: Sequence[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]], layers: Sequence[csr_matrix]
) -> TokenActivations:
    empty = np.zeros(0, dtype=np.int32)
    token_ids, document, position = (np.concatenate([empty, *(part[k] for part in parts)]) for k in range(3))
    sigma = np.concatenate([np.zeros((0, len(layers) + 1), dtype=np.float32), *(part[3] for part in parts)])
    order = np.lexsort((position, document))
    return TokenActivations(
        token_ids=token_ids[order],
        document=document[order],
        position=position[order],
        layers=tuple(layer[order] for layer in layers),
        sigma=sigma[order],
    )


def passages(model: LanguageModel, dictionary: Dictionary, texts: Sequence[Passage]) -> TokenActivations:
    """``observe`` on a scenario's passages, encoded as complete conversations or plain text."""
    return observe(model, dictionary, [model.encode_passage(passage) for passage in texts])


def residual_norms(model: LanguageModel, documents: Sequence[Sequence[int]], hook: str = "resid_post") -> NDArray[np.float64]:
    """Mean norm of the residual stream over content tokens, (n_layers,): what the unit ``residual`` of a strength is a fraction of.

    Args:
        model: the model.
        documents: token ids of each.
        hook: ``resid_post``, where what is written after a layer's MLP lands; ``resid_mid`` or ``resid_pre`` for what is written earlier.
    """
    sites = [(layer, hook) for layer in range(model.n_layers)]
    total, n_tokens = np.zeros(model.n_layers), 0
    for batch in content_batches(model, documents, sites):
        total += [float(batch.values[site].norm(dim=-1).double().sum()) for site in sites]
        n_tokens += len(batch.token_ids)
    return total / max(n_tokens, 1)
