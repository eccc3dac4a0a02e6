"""Which connections are listed: the strongest by each way of weighing, each with all the weights that were computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from audit.connections.attention import Flow
from audit.connections.flags import flags
from audit.connections.gathering import SHOWN, Strongest
from audit.connections.pairs import Pair, pair_edges
from audit.connections.twera import Edge
from audit.records import Connection, FeatureConnections, FeatureId, TargetDescriptors, TokenConnection
from audit.subject import Subject
from audit.subject.activations import TokenActivations

Describe = Callable[[Sequence[FeatureId]], Sequence[TargetDescriptors]]
"""Describes all listed targets, each once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weighed:
    """All that was found about some sources, in one order."""

    corpus: Sequence[Strongest]
    scenario: Sequence[Strongest] | None
    """On the scenario's own tokens."""
    flow: Flow | None
    """Through attention."""
    tokens: Sequence[tuple[tuple[TokenConnection, ...], tuple[TokenConnection, ...]]]
    """Output tokens promoted and suppressed."""


def listed(
    subject: Subject,
    weighed: Weighed,
    activations: TokenActivations,
    scenario: TokenActivations | None,
    *,
    top: int,
    support: int,
    describe: Describe,
) -> tuple[tuple[FeatureConnections, ...], tuple[TargetDescriptors, ...]]:
    """The connections of every source, and what their targets look like, by layer and index.

    Args:
        subject: model and dictionary.
        weighed: what was found.
        activations: of the corpus.
        scenario: activations on the scenario's own tokens, where it was weighed on them.
        top: targets listed a source and way of weighing.
        support: fewest tokens on which both must fire.
        describe: says what the targets are.
    """
    named = [named_targets(weighed, place, top=top, support=support) for place in range(len(weighed.corpus))]
    pairs = [(each.source, target) for each, names in zip(weighed.corpus, named, strict=True) for target in names.all]
    targets = tuple(describe(sorted({target for _, target in pairs})))
    made = Maker(
        subject=subject,
        support=support,
        flow=weighed.flow,
        corpus=pair_edges(subject, activations, pairs),
        scenario={} if scenario is None else pair_edges(subject, scenario, pairs),
        descriptors={each.feature: each for each in targets},
    )
    return tuple(made.feature(place, weighed, names) for place, names in enumerate(named)), targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The targets that are listed for one source."""

    targets: tuple[FeatureId, ...]
    unsupported: tuple[FeatureId, ...]
    never_coactive: tuple[FeatureId, ...]
    by_attention: tuple[FeatureId, ...]
    by_scenario: tuple[FeatureId, ...]

    @property
    def all(self) -> tuple[FeatureId, ...]:
        """Each once."""
        lists = (self.targets, self.unsupported, self.never_coactive, self.by_attention, self.by_scenario)
        return tuple(dict.fromkeys(target for each in lists for target in each))


def named_targets(weighed: Weighed, place: int, *, top: int, support: int) -> Named:
    """What is listed for the source at a place."""
    found = weighed.corpus[place]
    return Named(
        targets=_targets(found.edges),
        unsupported=_targets(found.unsupported),
        never_coactive=found.never_coactive[:SHOWN],
        by_attention=() if weighed.flow is None else strongest_through_attention(weighed.flow, place, top=top, support=support),
        by_scenario=() if weighed.scenario is None else _targets(weighed.scenario[place].edges),
    )


def _targets(edges: Iterable[Edge]) -> tuple[FeatureId, ...]:
    return tuple(edge.target for edge in edges)


def strongest_through_attention(flow: Flow, place: int, *, top: int, support: int) -> tuple[FeatureId, ...]:
    """Targets of one source by |TWERA+OV|, largest first, that it reaches on ``support`` tokens or more; ties by layer and index."""
    source = flow.sources[place]
    found: list[tuple[float, int, int]] = []
    for each in flow.layers:
        size = np.abs(each.whole[place])
        enough = np.flatnonzero((each.n_reached[place] >= max(support, 1)) & (size > 0)) if each.layer > source.layer else np.zeros(0, int)
        chosen = enough[np.argsort(-size[enough], kind="stable")][:top]
        found += [(-float(size[j]), each.layer, int(j)) for j in chosen]
    return tuple(FeatureId(source.dictionary, layer, index) for _, layer, index in sorted(found)[:top])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Maker:
    """Makes records of connections."""

    subject: Subject
    support: int
    flow: Flow | None
    corpus: Mapping[Pair, Edge]
    scenario: Mapping[Pair, Edge]
    descriptors: Mapping[FeatureId, TargetDescriptors]

    def feature(self, place: int, weighed: Weighed, names: Named) -> FeatureConnections:
        """One source."""
        found = weighed.corpus[place]
        promoted, suppressed = weighed.tokens[place]
        own = {edge.target: edge for edge in (*found.edges, *found.unsupported)}  # these were computed already, in the same way

        def made(targets: Iterable[FeatureId]) -> tuple[Connection, ...]:
            return tuple(self._connection(place, found, own.get(target) or self.corpus[found.source, target]) for target in targets)

        return FeatureConnections(
            source=found.source,
            targets=made(names.targets),
            n_targets=sum(self.subject.dictionary.widths[found.source.layer + 1 :]),
            n_unsupported=found.n_unsupported,
            support_cutoff=self.support,
            n_never_coactive=found.n_never_coactive,
            unsupported=made(names.unsupported),
            never_coactive=made(names.never_coactive),
            by_attention=made(names.by_attention),
            by_scenario=made(names.by_scenario),
            promoted=promoted,
            suppressed=suppressed,
        )

    def _connection(self, place: int, found: Strongest, edge: Edge) -> Connection:
        seen = self.descriptors[edge.target]
        layer = None if self.flow is None else next(each for each in self.flow.layers if each.layer == edge.target.layer)
        on_scenario = self.scenario.get((found.source, edge.target))
        return Connection(
            target=edge.target,
            virtual_weight=edge.virtual_weight,
            era=edge.era,
            twera=edge.twera,
            n_coactive=edge.n_coactive,
            target_frequency=edge.target_frequency,
            target_label=seen.label,
            target_unembeds=seen.top_unembeds,
            flags=flags(self.subject.dictionary, found, edge, self.support),
            through_attention=None if layer is None else float(layer.whole[place, edge.target.index]),
            n_reached=None if layer is None else int(layer.n_reached[place, edge.target.index]),
            scenario_twera=None if on_scenario is None else on_scenario.twera,
            scenario_era=None if on_scenario is None else on_scenario.era,
            scenario_n_coactive=None if on_scenario is None else on_scenario.n_coactive,
        )
