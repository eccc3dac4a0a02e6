"""CandidateSet → DownstreamConnections: which later features each candidate feeds, by virtual weight and co-activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from audit.candidates.examples import label
from audit.candidates.known import NOTHING, Known
from audit.candidates.unembeds import extremes
from audit.connections.flags import flags
from audit.connections.twera import Edge, Strongest, strongest_targets
from audit.events import Observer, StepProgress, check_stop
from audit.records import CandidateSet, Connection, DownstreamConnections, FeatureConnections, FeatureId, TokenWeight
from audit.records.connections import ConnectionFlag
from audit.subject import Subject
from audit.subject.activations import TokenActivations

__all__ = ["connect"]

STEP = "connections"

DescribeTarget = Callable[[FeatureId], tuple[str, tuple[TokenWeight, ...]]]


def connect(
    subject: Subject,
    candidates: CandidateSet,
    activations: TokenActivations,
    *,
    top: int = 32,
    support: int = 20,
    known: Known = NOTHING,
    observer: Observer,
) -> DownstreamConnections:
    """Find every candidate's strongest downstream targets on one corpus.

    Args:
        subject: model and dictionary.
        candidates: the sources, in the order of the result.
        activations: of the corpus; its content tokens are what the expectations run over.
        top: targets kept a candidate, by |TWERA|.
        support: fewest tokens on which candidate and target must fire together; targets below it are counted, not ranked.
        known: labels of others, which name targets in place of computed ones.
        observer: told the layers done; may stop between them.

    Raises:
        SubjectError: the dictionary reads a site without a virtual weight.
        Interrupted: the observer asked to stop.
    """
    sources = [candidate.feature for candidate in candidates.candidates]

    @cache  # candidates share targets
    def describe_target(feature: FeatureId) -> tuple[str, tuple[TokenWeight, ...]]:
        given = known.label_of(feature)
        return given[0] if given else label(subject.model, activations, feature), extremes(subject, feature)[0]

    def told(done: int, total: int, layer: int) -> None:
        check_stop(observer)
        observer.notify(StepProgress(STEP, done, total, f"layer {layer}"))

    found = strongest_targets(subject, activations, sources, top=top, support=support, device=subject.model.device, told=told)
    return DownstreamConnections(
        features=tuple(_feature(subject, each, support, describe_target) for each in found),
        corpus_sha256=subject.info.corpus_sha256,
        n_tokens=activations.n_tokens,
    )


def _feature(subject: Subject, found: Strongest, support: int, describe_target: DescribeTarget) -> FeatureConnections:
    marked = zip(found.edges, flags(subject.dictionary, found), strict=True)
    return FeatureConnections(
        source=found.source,
        targets=tuple(_connection(edge, its, describe_target) for edge, its in marked),
        n_targets=sum(subject.dictionary.widths[found.source.layer + 1 :]),
        n_unsupported=found.n_unsupported,
        support_cutoff=support,
        n_never_coactive=found.n_never_coactive,
    )


def _connection(edge: Edge, flags: tuple[ConnectionFlag, ...], describe_target: DescribeTarget) -> Connection:
    label, unembeds = describe_target(edge.target)
    return Connection(
        target=edge.target,
        virtual_weight=edge.virtual_weight,
        era=edge.era,
        twera=edge.twera,
        n_coactive=edge.n_coactive,
        target_frequency=edge.target_frequency,
        target_label=label,
        target_unembeds=unembeds,
        flags=flags,
    )
