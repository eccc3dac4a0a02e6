"""Connections of candidates whose co-activations were kept with a dictionary's statistics: no pass over a corpus is made.

V, ERA, TWERA and support are there, from sums that are exact but for 2^-41 a token; what needs activations (output tokens, motor shares,
effects through attention, the scenario's own tokens) is left out. A target is labelled by the tokens on which its top examples peak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audit.candidates.known import NOTHING, Known
from audit.candidates.unembeds import extremes
from audit.connections import virtual_weights
from audit.connections.coactivation import Floats
from audit.connections.gathering import SHOWN, Strongest
from audit.connections.listing import Maker, Weighed, named_targets
from audit.connections.pairs import Pair
from audit.connections.strongest import LOUDEST
from audit.connections.twera import Edge, weigh
from audit.corpus import Artefact, coactivation
from audit.corpus.showing import feature_of
from audit.events import Observer, StepProgress, check_stop
from audit.records import DownstreamConnections, Example, FeatureId, TargetDescriptors
from audit.records.statistics import CorpusExample
from audit.subject import Subject

STEP = "connections"
LABEL_SOURCE = "tokens of the top examples that were kept"
N_EXAMPLES = 3
MOST_LABEL = 60
"""Characters of a label."""


def connect_kept(
    subject: Subject,
    artefact: Artefact,
    sources: Sequence[FeatureId],
    *,
    top: int = 32,
    support: int = 20,
    known: Known = NOTHING,
    observer: Observer,
) -> DownstreamConnections:
    """The strongest downstream targets of some candidates, from statistics.

    Args:
        subject: model and dictionary that the statistics belong to.
        artefact: statistics with the candidates' co-activations.
        sources: the candidates, in the order of the result.
        top: targets listed a candidate, by |TWERA|.
        support: fewest tokens on which both must fire.
        known: labels of others, which name targets in place of computed ones.
        observer: told the candidates done; may stop between them.

    Raises:
        UsageError: the co-activations of a candidate were not kept, or the dictionary has no such feature.
        SubjectError: the dictionary reads a site without a virtual weight.
        Interrupted: the observer asked to stop.
    """
    weighed: list[_Targets] = []
    for source in sources:
        subject.dictionary.check(source)
        check_stop(observer)
        observer.notify(StepProgress(STEP, len(weighed), len(sources), str(source)))
        weighed.append(_targets(subject, artefact, source))
    found = Weighed(
        corpus=[each.strongest(top, max(support, 1)) for each in weighed], scenario=None, flow=None, tokens=[((), ())] * len(weighed)
    )
    named = [named_targets(found, place, top=top, support=support) for place in range(len(weighed))]
    corpus = {pair: edge for each, names in zip(weighed, named, strict=True) for pair, edge in each.edges(names.all).items()}
    listed = sorted({target for names in named for target in names.all})
    descriptors = {target: _described(subject, artefact, target, known) for target in listed}
    made = Maker(subject=subject, support=support, flow=None, corpus=corpus, scenario={}, descriptors=descriptors)
    return DownstreamConnections(
        features=tuple(made.feature(place, found, names) for place, names in enumerate(named)),
        corpus_sha256=artefact.manifest.shards_sha256,
        n_tokens=artefact.statistics.n_tokens,
        targets=tuple(descriptors.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Targets:
    """One candidate's weights on every feature of every later layer, by layer and index: (n,) each."""

    source: FeatureId
    layer: NDArray[np.int64]
    index: NDArray[np.int64]
    virtual: Floats
    era: Floats
    twera: Floats
    n_coactive: NDArray[np.int64]
    frequency: Floats

    def strongest(self, top: int, support: int) -> Strongest:
        """As ``strongest_targets`` gives them."""
        meets = np.flatnonzero(self.n_coactive)
        meets = meets[np.argsort(-np.abs(self.twera[meets]), kind="stable")]
        enough = self.n_coactive[meets] >= support
        loudest = np.argsort(-np.abs(self.virtual), kind="stable")[: math.ceil(LOUDEST * len(self.virtual))]
        silent = loudest[self.n_coactive[loudest] == 0]
        square = np.square(self.virtual)
        return Strongest(
            source=self.source,
            edges=tuple(map(self.edge, meets[enough][:top])),
            n_unsupported=int(np.count_nonzero(~enough)),
            n_never_coactive=len(silent),
            unsupported=tuple(map(self.edge, meets[~enough][:SHOWN])),
            never_coactive=tuple(self.edge(place).target for place in silent),
            typical={int(layer): float(np.sqrt(square[self.layer == layer].mean())) for layer in np.unique(self.layer)},
        )

    def edge(self, place: np.intp) -> Edge:
        """One connection."""
        return Edge(
            target=FeatureId(self.source.dictionary, int(self.layer[place]), int(self.index[place])),
            virtual_weight=float(self.virtual[place]),
            era=float(self.era[place]),
            twera=float(self.twera[place]),
            n_coactive=int(self.n_coactive[place]),
            target_frequency=float(self.frequency[place]),
        )

    def edges(self, targets: Sequence[FeatureId]) -> dict[Pair, Edge]:
        """Some of them, by pair."""
        where = {(int(layer), int(index)): place for place, (layer, index) in enumerate(zip(self.layer, self.index, strict=True))}
        return {(self.source, each): self.edge(np.intp(where[each.layer, each.index])) for each in targets}


def _targets(subject: Subject, artefact: Artefact, source: FeatureId) -> _Targets:
    dictionary, parts = subject.dictionary, []
    for layer in (each for each in dictionary.present if each > source.layer):
        kept = coactivation(artefact.statistics, [source], layer)
        norm = subject.model.mlp_norm(layer) if virtual_weights.reading(dictionary).divided else None
        weights = weigh(virtual_weights.row(dictionary, source, layer, norm).numpy()[None], kept)
        places = np.stack([np.full(len(kept.n_firing), layer), np.arange(len(kept.n_firing)), kept.n_coactive[0]])
        figures = np.stack([weights.virtual[0], weights.era[0], weights.twera[0], kept.n_firing / max(kept.n_tokens, 1)])
        parts.append((places, figures))
    places = np.concatenate([np.zeros((3, 0), dtype=np.int64), *(part[0] for part in parts)], axis=1)
    figures = np.concatenate([np.zeros((4, 0)), *(part[1] for part in parts)], axis=1)
    return _Targets(
        source=source,
        layer=places[0],
        index=places[1],
        n_coactive=places[2],
        virtual=figures[0],
        era=figures[1],
        twera=figures[2],
        frequency=figures[3],
    )


def _described(subject: Subject, artefact: Artefact, feature: FeatureId, known: Known) -> TargetDescriptors:
    seen = feature_of(artefact, feature, subject.model.token_texts)
    top, bottom = extremes(subject, feature)
    examples = tuple(_example(each) for each in seen.examples[:N_EXAMPLES])
    words = dict.fromkeys(each.tokens[each.peak].strip() for each in seen.examples if each.tokens)
    text, source = known.label_of(feature) or (" · ".join(word for word in words if word)[:MOST_LABEL], LABEL_SOURCE)
    return TargetDescriptors(
        feature=feature,
        label=text,
        label_source=source,
        frequency=seen.frequency,
        examples=examples,
        top_unembeds=top,
        bottom_unembeds=bottom,
        motor_share=None,
        motor_tokens=0,
    )


def _example(kept: CorpusExample) -> Example:
    """Only the peak's activation was kept."""
    shown = tuple(round(kept.activation, 4) if place == kept.peak else 0.0 for place in range(len(kept.token_ids)))
    return Example(tokens=kept.tokens or (), activations=shown, peak=kept.peak)
