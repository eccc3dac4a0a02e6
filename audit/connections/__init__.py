"""CandidateSet → DownstreamConnections: which later features each candidate feeds, by virtual weight and co-activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from audit.candidates.known import NOTHING, Known
from audit.connections.attention import Flow, through_attention
from audit.connections.descriptors import describe_targets
from audit.connections.gathering import Strongest
from audit.connections.listing import Weighed, listed
from audit.connections.output_tokens import output_edges
from audit.connections.strongest import Told, strongest_targets
from audit.events import Observer, StepProgress, check_stop
from audit.records import AttentionTokens, DownstreamConnections, FeatureId, ScenarioTokens, TargetDescriptors
from audit.subject import Subject
from audit.subject.activations import TokenActivations

__all__ = ["ScenarioActivations", "connect"]

STEP = "connections"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScenarioActivations:
    """The scenario's own tokens, and what features do on them."""

    tokens: ScenarioTokens
    activations: TokenActivations


def connect(
    subject: Subject,
    sources: Sequence[FeatureId],
    activations: TokenActivations,
    *,
    top: int = 32,
    support: int = 20,
    scenario: ScenarioActivations | None = None,
    attention_tokens: int = 0,
    known: Known = NOTHING,
    observer: Observer,
) -> DownstreamConnections:
    """Find every candidate's strongest downstream targets.

    Args:
        subject: model and dictionary.
        sources: the candidates, in the order of the result.
        activations: of the corpus; its content tokens are what the expectations run over.
        top: targets listed a candidate and way of weighing, by absolute weight.
        support: fewest tokens on which candidate and target must fire together; what is below it is shown apart, never ranked.
        scenario: weigh on these tokens too.
        attention_tokens: content tokens of the corpus on which effects are followed through attention; 0 leaves that out.
        known: labels of others, which name targets in place of computed ones.
        observer: told how far it is; may stop between layers and documents.

    Raises:
        UsageError: the dictionary has no such feature.
        SubjectError: the dictionary reads a site without a virtual weight, or attention cannot be followed in this model.
        Interrupted: the observer asked to stop.
    """
    for source in sources:
        subject.dictionary.check(source)

    def describe(targets: Sequence[FeatureId]) -> tuple[TargetDescriptors, ...]:
        return describe_targets(subject, activations, targets, known, observer=observer)

    def weigh(on: TokenActivations) -> tuple[Strongest, ...]:
        return strongest_targets(subject, on, sources, top=top, support=support, device=subject.model.device, told=_told(observer))

    flow = None
    if attention_tokens:
        flow = through_attention(subject, activations, sources, max_tokens=attention_tokens, observer=observer)
    weighed = Weighed(
        corpus=weigh(activations),
        scenario=None if scenario is None else weigh(scenario.activations),
        flow=flow,
        tokens=output_edges(subject, activations, sources),
    )
    on_scenario = None if scenario is None else scenario.activations
    features, targets = listed(subject, weighed, activations, on_scenario, top=top, support=support, describe=describe)
    return DownstreamConnections(
        features=features,
        corpus_sha256=subject.info.corpus_sha256,
        n_tokens=activations.n_tokens,
        targets=targets,
        attention=None if flow is None else _cost(flow),
        scenario=None if scenario is None else scenario.tokens,
    )


def _told(observer: Observer) -> Told:
    def told(done: int, total: int, layer: int) -> None:
        check_stop(observer)
        observer.notify(StepProgress(STEP, done, total, f"layer {layer}"))

    return told


def _cost(flow: Flow) -> AttentionTokens:
    return AttentionTokens(n_tokens=flow.n_tokens, n_documents=flow.n_documents, operations=flow.operations)
