"""DownstreamConnections → Ranking: which candidates will act, predicted before anything is steered."""

from __future__ import annotations

from audit.events import Observer, StepProgress, check_stop
from audit.ranking.rank import deal, fell_back, order, score_feature
from audit.ranking.roles import side, target_roles
from audit.records import DownstreamConnections, RankedFeature, Ranking
from audit.subject import Subject
from audit.subject.activations import TokenActivations

__all__ = ["METHOD", "rank"]

STEP = "ranking"

METHOD = "acting-score/2"
"""Name and version of the formula: it changes when the meaning of a score, of its interval or of the prediction changes."""


def rank(
    subject: Subject,
    connections: DownstreamConnections,
    activations: TokenActivations,
    *,
    acting: TokenActivations,
    discussing: TokenActivations,
    seed: int,
    top_k: int = 32,
    shards: int = 20,
    resamples: int = 200,
    observer: Observer,
) -> Ranking:
    """Predict which candidates act.

    Args:
        subject: model and dictionary.
        connections: of the candidates; ties in the score keep their order.
        activations: of the corpus that the connections were computed on.
        acting: of the scenario's passages that act on the concept.
        discussing: of the passages that discuss it.
        seed: of the bootstrap over shards and passages; nothing else is random.
        top_k: strongest targets that a score looks at.
        shards: parts that the corpus's documents are dealt into.
        resamples: bootstrap draws.
        observer: told the candidates done; may stop between them.

    Raises:
        InsufficientEvidence: one of the passage sets has no content token.
        Interrupted: the observer asked to stop.
    """
    chosen = {found.source: found.targets[:top_k] for found in connections.features}
    every_feature = [*chosen, *(connection.target for targets in chosen.values() for connection in targets)]
    roles = target_roles(every_feature, acting, discussing)
    corpus = deal(subject, activations, shards=shards, resamples=resamples, seed=seed)
    sides = (side(acting, resamples, (seed, 1)), side(discussing, resamples, (seed, 2)))
    scored: list[RankedFeature] = []
    for source, targets in chosen.items():
        check_stop(observer)
        observer.notify(StepProgress(STEP, len(scored), len(chosen), str(source)))
        scored.append(score_feature(source, targets, roles, corpus, sides=sides))
    features = order(scored)
    return Ranking(
        features=features,
        method=METHOD,
        top_k=top_k,
        n_acting_tokens=acting.n_tokens,
        n_discussing_tokens=discussing.n_tokens,
        fallback=fell_back(features),
    )
