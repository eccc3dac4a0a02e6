"""Weights of chosen pairs of a source and a target, on any tokens: what ``strongest_targets`` gives for the strongest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from audit.connections import coactivation, virtual_weights
from audit.connections.twera import Edge, denominators
from audit.records import FeatureId
from audit.subject import Subject
from audit.subject.activations import TokenActivations

Pair = tuple[FeatureId, FeatureId]
"""A source and a target of a later layer."""


def pair_edges(subject: Subject, activations: TokenActivations, pairs: Iterable[Pair]) -> dict[Pair, Edge]:
    """V, ERA, TWERA and support of some pairs, each encoder and decoder read once a layer; whatever their support.

    Args:
        subject: model and dictionary.
        activations: whose content tokens the expectations run over.
        pairs: of one dictionary, in any order.
    """
    dictionary, by_layer = subject.dictionary, _by_layer(pairs)
    sources = sorted({source for group in by_layer.values() for source in group}, key=lambda source: (source.layer, source.index))
    place = {source: number for number, source in enumerate(sources)}
    written = virtual_weights.Written(dictionary=dictionary, sources=sources)
    found: dict[Pair, Edge] = {}
    for layer, group in sorted(by_layer.items()):
        norm = subject.model.mlp_norm(layer) if virtual_weights.reading(dictionary).divided else None
        directions = virtual_weights.read_through(dictionary, written.before(layer), norm)
        sigma, targets = denominators(dictionary, activations, layer), coactivation.targets_of(activations, layer)
        for source, columns in group.items():
            index = np.asarray(sorted(columns), dtype=np.int64)
            owner = np.full(len(index), place[source], dtype=np.intp)
            virtual = virtual_weights.pairs(dictionary.at(layer).W_enc, directions, owner, index)
            [firing] = coactivation.firings(activations.layers[source.layer], [source.index])
            meeting = coactivation.meet([firing.over(sigma)], targets)
            weighted, gated = meeting.sums(index)
            total, n_tokens = targets.total[index], max(activations.n_tokens, 1)
            expected = np.divide(weighted, total, out=np.zeros(len(index)), where=total > 0)
            for k, j in enumerate(index.tolist()):
                target = FeatureId(dictionary.kind, layer, j)
                found[source, target] = Edge(
                    target=target,
                    virtual_weight=float(virtual[k]),
                    era=float(gated[k] / n_tokens * virtual[k]),
                    twera=float(expected[k] * virtual[k]),
                    n_coactive=int(meeting.n_coactive[0, j]),
                    target_frequency=float(targets.n_firing[j] / n_tokens),
                )
    return found


def _by_layer(pairs: Iterable[Pair]) -> dict[int, dict[FeatureId, set[int]]]:
    """Target layer → source → indices of its targets there."""
    found: defaultdict[int, defaultdict[FeatureId, set[int]]] = defaultdict(lambda: defaultdict(set))
    for source, target in pairs:
        if source.layer >= target.layer:
            raise ValueError(f"{target} is not of a later layer than {source}")
        found[target.layer][source].add(target.index)
    return {layer: dict(group) for layer, group in found.items()}
