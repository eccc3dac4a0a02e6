"""What a feature's decoder says straight to the unembedding, and the search for a concept's words among it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from audit.records import FeatureId, TokenWeight
from audit.subject import Subject
from audit.subject.architecture import architecture_of
from audit.subject.hookpoints import resolve_write
from audit.subject.model import LanguageModel

DEPTH = 20
"""Top unembeds that a concept's word is looked for in."""
_ELEMENTS = 1 << 26
"""Logits or decoder entries held at once, 256 MiB."""


class Top(NamedTuple):
    """Largest unembeds of some features."""

    values: Tensor
    """(n, DEPTH), largest first."""
    indices: Tensor
    """(n, DEPTH) tokens."""


def extremes(subject: Subject, feature: FeatureId, n: int = 8) -> tuple[tuple[TokenWeight, ...], tuple[TokenWeight, ...]]:
    """Largest and smallest entries of W_U · norm(decoder), outermost first; a cross-layer decoder is summed over layers.

    Nothing, where what the decoder writes does not reach the residual stream by a linear map.
    """
    written = into_stream(subject, feature.layer, subject.dictionary.decoder(feature).sum(0))
    if written is None:
        return (), ()
    logits = subject.model.unembed_direction(written).cpu()
    return token_weights(subject.model, logits, n, largest=True), token_weights(subject.model, logits, n, largest=False)


def token_weights(model: LanguageModel, logits: Tensor, n: int, *, largest: bool) -> tuple[TokenWeight, ...]:
    """The n largest or smallest of the logits, (vocabulary,), outermost first."""
    found = logits.topk(min(n, len(logits)), largest=largest)
    return tuple(
        TokenWeight(token="".join(model.token_texts([int(token)])), weight=round(float(value), 4))
        for token, value in zip(found.indices, found.values, strict=True)
    )


def by_unembeds(subject: Subject, words: Sequence[str], among: Iterable[FeatureId] | None = None) -> list[FeatureId]:
    """Features that have a word among their top unembeds; those that have one higher up come first, then by weight.

    Args:
        subject: model and dictionary.
        words: any of them counts.
        among: the features that are looked at; all by default.
    """
    tokens = torch.tensor(sorted(word_tokens(subject.model, words)), dtype=torch.long)
    if not len(tokens):
        return []
    indices: defaultdict[int, list[int]] = defaultdict(list)
    for feature in subject.dictionary.features() if among is None else among:
        indices[feature.layer].append(feature.index)
    hits = []
    for layer, chosen in sorted(indices.items()):
        for part, top in _top_logits(subject, layer, sorted(chosen)):
            match = torch.isin(top.indices, tokens)
            for row in torch.nonzero(match.any(1)).flatten().tolist():
                place = int(match[row].int().argmax())
                hits.append((place, -float(top.values[row, place]), FeatureId(subject.dictionary.kind, layer, part[row])))
    return [feature for _, _, feature in sorted(hits)]


def _top_logits(subject: Subject, layer: int, indices: Sequence[int]) -> Iterator[tuple[Sequence[int], Top]]:
    """The ``DEPTH`` largest unembeds of some features of a layer, a chunk at a time: (indices, on the CPU)."""
    model, W_dec = subject.model, subject.dictionary.at(layer).W_dec
    step = max(1, _ELEMENTS // max(model.vocabulary, math.prod(W_dec.shape[1:])))
    for start in range(0, len(indices), step):
        part = indices[start : start + step]
        written = into_stream(subject, layer, W_dec.rows(part, device=model.device).sum(1))
        if written is not None:
            values, places = model.unembed_direction(written).topk(min(DEPTH, model.vocabulary))
            yield part, Top(values.cpu(), places.cpu())


def into_stream(subject: Subject, layer: int, rows: Tensor) -> Tensor | None:
    """What decoder rows, (..., d_out), add to the residual stream, (..., d_model)."""
    hook = subject.dictionary.output_hook
    if hook == "attn_z":
        reads = architecture_of(subject.model.architecture).reads
        if not reads["attn_z"].module.startswith(reads["attn_out"].module):
            return None  # a norm stands between the output projection and the stream
        project = resolve_write(subject.model, layer, hook).module
        rows = rows.to(subject.model.device, subject.model.dtype)
        with torch.inference_mode():
            through: Tensor = project(rows) - project(torch.zeros_like(rows))  # without the bias
        return through
    return None if hook in ("mlp_in", "mlp_in_unweighted", "mlp_out_raw") else rows


def word_tokens(model: LanguageModel, words: Sequence[str]) -> frozenset[int]:
    """Tokens that are one of the words and nothing else: with or without a space before, in small letters or not."""
    forms = {space + form for word in words for form in (word, word.lower(), word.capitalize()) for space in ("", " ")}
    found: set[int] = set()
    for form in sorted(forms):
        ids = [token for token in model.encode_text(form) if token not in model.special_ids]
        if len(ids) == 1:
            found.update(ids)
    return frozenset(found)
