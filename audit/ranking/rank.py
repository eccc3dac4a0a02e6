"""The prediction: candidates from likeliest to act to likeliest to discuss, fixed before anything is steered.

A candidate is predicted to act when the lower bound of its acting score's interval is above 0. When no candidate qualifies, the one ranked
first is predicted alone, provided that its score is above 0; else nobody is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from audit.connections import coactivation, twera
from audit.connections.coactivation import Floats
from audit.ranking.roles import PassageSide, resampled_roles
from audit.ranking.score import ShardSums, acting_score, bootstrap, resample
from audit.records import Connection, FeatureId, Interval, RankedFeature, TargetRole
from audit.subject import Subject
from audit.subject.activations import TokenActivations


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """What the bootstrap resamples of the corpus."""

    subject: Subject
    activations: TokenActivations
    shard: NDArray[np.int64]
    """(n_tokens,) shard of each token."""
    drawn: Floats
    """(resamples, n_shards) how often each shard is drawn."""


def deal(subject: Subject, activations: TokenActivations, *, shards: int, resamples: int, seed: int) -> Corpus:
    """Deal the corpus's documents into shards and draw the resamples, the same for every candidate."""
    shard = coactivation.shards(activations.document, shards)
    drawn = resample(int(shard.max(initial=0)) + 1, resamples, seed)
    return Corpus(subject=subject, activations=activations, shard=shard, drawn=drawn)


def score_feature(
    source: FeatureId,
    targets: Sequence[Connection],
    roles: Mapping[FeatureId, TargetRole],
    corpus: Corpus,
    *,
    sides: tuple[PassageSide, PassageSide],
) -> RankedFeature:
    """Score one candidate on its chosen targets; rank and prediction are filled in by ``order``.

    Args:
        source: the candidate.
        targets: its strongest ones.
        roles: of the targets and of the candidate itself.
        corpus: resampled for the interval.
        sides: acting and discussing passages, resampled for the interval.
    """
    target_role = tuple(roles[connection.target] for connection in targets)
    role = np.array([np.nan if known.role is None else known.role for known in target_role], dtype=np.float64)
    score = acting_score(np.array([connection.twera for connection in targets], dtype=np.float64), role)
    return RankedFeature(
        feature=source,
        rank=0,
        acting_score=score.value,
        interval=None if score.value is None else _interval(source, targets, corpus, sides),
        role_mass=score.role_mass,
        n_targets=len(targets),
        predicted_acting=False,
        own_role=roles[source].role,
        targets=target_role,
    )


def _interval(source: FeatureId, targets: Sequence[Connection], corpus: Corpus, sides: tuple[PassageSide, PassageSide]) -> Interval | None:
    """TWERA and roles, each from its own resamples."""
    drawn_roles = np.stack([resampled_roles(connection.target, *sides) for connection in targets], axis=1)
    return bootstrap(shard_sums(source, targets, corpus), drawn_roles, corpus.drawn)


def shard_sums(source: FeatureId, targets: Sequence[Connection], corpus: Corpus) -> ShardSums:
    """TWERA's sums by shard for the chosen targets of one source, columns in the order of ``targets``."""
    layers, n_shards = corpus.activations.layers, corpus.drawn.shape[1]
    weighted, target_sum = np.zeros((n_shards, len(targets))), np.zeros((n_shards, len(targets)))
    for layer in {connection.target.layer for connection in targets}:
        place = [k for k, connection in enumerate(targets) if connection.target.layer == layer]
        weighted[:, place], target_sum[:, place] = coactivation.shard_sums(
            layers[source.layer][:, [source.index]],
            layers[layer][:, [targets[k].target.index for k in place]],
            twera.denominators(corpus.subject.dictionary, corpus.activations, layer),
            corpus.shard,
        )
    virtual = np.array([connection.virtual_weight for connection in targets])
    return ShardSums(weighted=weighted, target_sum=target_sum, virtual=virtual)


def order(scored: Sequence[RankedFeature]) -> tuple[RankedFeature, ...]:
    """Rank by score, highest first, and mark the prediction; no score comes last, equal scores keep their order."""
    by_score = sorted(scored, key=lambda feature: -np.inf if feature.acting_score is None else feature.acting_score, reverse=True)
    qualified = [_qualifies(feature) for feature in by_score]
    if by_score and not any(qualified):
        qualified[0] = (by_score[0].acting_score or 0.0) > 0
    return tuple(
        replace(feature, rank=place, predicted_acting=acts)
        for place, (feature, acts) in enumerate(zip(by_score, qualified, strict=True), 1)
    )


def fell_back(ordered: Sequence[RankedFeature]) -> bool:
    """Whether the prediction is the first one's score alone, because no interval lies above 0."""
    return any(feature.predicted_acting and not _qualifies(feature) for feature in ordered)


def _qualifies(feature: RankedFeature) -> bool:
    return feature.interval is not None and feature.interval.low > 0
