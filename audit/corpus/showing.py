"""Statistics as people read them: totals, and one feature with its examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from audit.corpus.artefact import Artefact
from audit.corpus.documents import DocumentTable
from audit.errors import UsageError
from audit.records.names import FeatureId
from audit.records.statistics import CorpusExample, FeatureStatistics, LayerStatistics, StatisticsSummary

REACH = 12
"""Tokens shown on each side of the token on which a feature fires most."""
Texts = Callable[[Sequence[int]], tuple[str, ...]]
"""One string a token."""


def summary_of(artefact: Artefact) -> StatisticsSummary:
    """Totals, and every layer that has features."""
    statistics = artefact.statistics
    layers = [
        LayerStatistics(
            layer=number,
            n_features=len(layer.n_firing),
            l0=int(layer.n_firing.sum()) / max(statistics.n_tokens, 1),
            dead_share=float(np.mean(layer.n_firing == 0)),
        )
        for number, layer in enumerate(statistics.layers)
        if len(layer.n_firing)
    ]
    return StatisticsSummary(
        n_tokens=statistics.n_tokens,
        n_documents=statistics.n_documents,
        n_shards=len(statistics.shards),
        corpora=artefact.manifest.corpora,
        shards_sha256=artefact.manifest.shards_sha256,
        candidates=statistics.key.candidates,
        layers=tuple(layers),
    )


def feature_of(artefact: Artefact, feature: FeatureId, texts: Texts | None = None) -> FeatureStatistics:
    """One feature with its strongest examples.

    Args:
        artefact: the statistics.
        feature: which.
        texts: the tokenizer's; without it examples have token ids alone.

    Raises:
        UsageError: the dictionary has no such feature.
    """
    refuse_unknown(artefact, feature)
    layer = artefact.statistics.layers[feature.layer]
    at = np.array([feature.index])
    n_firing = int(layer.n_firing[feature.index])
    mean = float(layer.total.at(at).values()[0]) / n_firing if n_firing else None
    squared = float(layer.squares.at(at).values()[0]) / n_firing if n_firing else None
    found = layer.examples.of(feature.index)
    rows = zip(found.activation.tolist(), found.document.tolist(), found.position.tolist(), strict=True)
    return FeatureStatistics(
        feature=feature,
        n_firing=n_firing,
        frequency=n_firing / max(artefact.statistics.n_tokens, 1),
        mean_activation=mean,
        deviation=None if mean is None or squared is None else math.sqrt(max(squared - mean * mean, 0.0)),
        max_activation=float(layer.largest[feature.index]),
        examples=tuple(_example(artefact.statistics.documents, row, texts) for row in rows),
    )


def refuse_unknown(artefact: Artefact, feature: FeatureId) -> None:
    """Make sure that statistics have a feature.

    Raises:
        UsageError: they do not.
    """
    key = artefact.statistics.key
    width = key.widths[feature.layer] if feature.layer < len(key.widths) else 0
    if feature.dictionary != key.kind or feature.index >= width:
        layers = ", ".join(f"{layer} ({width})" for layer, width in enumerate(key.widths) if width)
        raise UsageError("No such feature", f"There are no statistics of {feature}.", f"Kind {key.kind}, layers (features): {layers}.")


def _example(documents: DocumentTable, row: tuple[float, int, int], texts: Texts | None) -> CorpusExample:
    activation, document, position = row
    start = max(0, position - REACH)
    ids = tuple(documents.tokens_of(document)[start : position + REACH + 1].tolist())
    return CorpusExample(
        activation=activation,
        document=f"{document:016x}",
        position=position,
        token_ids=ids,
        peak=position - start,
        tokens=None if texts is None else texts(ids),
    )
