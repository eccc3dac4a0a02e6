"""The ranking on a made subject whose right answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from scipy import sparse

from audit.connections.strongest import strongest_targets
from audit.errors import Interrupted
from audit.events import Event, SilentObserver, StepProgress
from audit.ranking import rank
from audit.ranking.rank import deal, fell_back, order, shard_sums
from audit.records import Connection, DownstreamConnections, FeatureConnections, FeatureId, Interval, RankedFeature, Ranking
from audit.subject import Subject, observe
from audit.subject.activations import TokenActivations
from audit.subject.dictionary import Dictionary, LayerWeights
from audit.subject.matrix import Matrix
from audit.subject.norms import Norm

ACTS, TALKS, SILENT, LAST = FeatureId("plt", 0, 0), FeatureId("plt", 0, 1), FeatureId("plt", 0, 2), FeatureId("plt", 1, 0)
N_TOKENS, WIDTH = 600, 4

Passages = tuple[TokenActivations, TokenActivations]
"""Acting, discussing."""


def tokens(layers: tuple[np.ndarray, ...], n_documents: int = 30) -> TokenActivations:
    n = len(layers[0])
    rng = np.random.default_rng(9)
    return TokenActivations(
        token_ids=np.arange(n, dtype=np.int32),
        document=(np.arange(n) * n_documents // max(n, 1)).astype(np.int32),
        position=np.zeros(n, np.int32),
        layers=tuple(sparse.csr_matrix(values.astype(np.float32)) for values in layers),
        sigma=rng.uniform(0.5, 2.0, (n, len(layers))).astype(np.float32),
    )


@pytest.fixture
def subject() -> Subject:
    """Two layers. Feature k of layer 0 writes what feature k of layer 1 reads, and a little of everything else."""
    writes = torch.eye(WIDTH) + 0.1
    layer = LayerWeights(W_enc=Matrix(torch.eye(WIDTH), "made"), b_enc=torch.zeros(WIDTH), W_dec=Matrix(writes[:, None], "made"))
    dictionary = Dictionary(
        kind="plt",
        format="made",
        n_layers=2,
        d_model=WIDTH,
        input_hook="mlp_in",
        output_hook="mlp_out",
        sha256="0" * 64,
        path=Path("made"),
        files=(),
        layers=(layer, layer),
        b_dec=(torch.zeros(WIDTH), torch.zeros(WIDTH)),
    )
    norm = Norm(kind="rms", eps=1e-6, gain=torch.full((WIDTH,), 1.5))
    model = SimpleNamespace(mlp_norm=lambda layer: norm)
    return cast(Subject, SimpleNamespace(model=model, dictionary=dictionary))


@pytest.fixture
def corpus() -> TokenActivations:
    """Everything fires with everything now and then; feature 3 of layer 1 never fires on the passages, see ``passages``."""
    rng = np.random.default_rng(0)
    return tokens(tuple(rng.gamma(2, 1, (N_TOKENS, WIDTH)) * (rng.random((N_TOKENS, WIDTH)) < 0.6) for _ in range(2)))


@pytest.fixture
def passages() -> Passages:
    """Layer 1: feature 0 fires on acting passages, feature 1 on discussing ones, 2 and 3 on neither. Layer 0: feature 0 on both alike."""
    on, off = np.ones((40, 1)), np.zeros((40, 1))
    shared = np.hstack([on, on, off, off])
    return tokens((shared, np.hstack([on, off, off, off]))), tokens((shared, np.hstack([off, on, off, off])))


def connections(subject: Subject, corpus: TokenActivations, sources: list[FeatureId]) -> DownstreamConnections:
    """Real edges, without descriptions."""
    found = []
    for source in sources:
        [weighed] = strongest_targets(subject, corpus, [source], top=32, support=20)
        targets = tuple(
            Connection(
                target=edge.target,
                virtual_weight=edge.virtual_weight,
                era=edge.era,
                twera=edge.twera,
                n_coactive=edge.n_coactive,
                target_frequency=edge.target_frequency,
                target_label="",
                target_unembeds=(),
            )
            for edge in weighed.edges
        )
        n = weighed.n_unsupported
        found.append(FeatureConnections(source=source, targets=targets, n_targets=WIDTH, n_unsupported=n, support_cutoff=20))
    return DownstreamConnections(features=tuple(found), corpus_sha256="0" * 64, n_tokens=N_TOKENS)


def ranked(subject: Subject, corpus: TokenActivations, passages: Passages, *, seed: int = 0, top_k: int = 32) -> Ranking:
    return rank(
        subject,
        connections(subject, corpus, [TALKS, LAST, ACTS]),
        corpus,
        acting=passages[0],
        discussing=passages[1],
        seed=seed,
        top_k=top_k,
        observer=SilentObserver(),
    )


def test_what_feeds_acting_ranks_first_and_is_predicted(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    ranking = ranked(subject, corpus, passages)
    acts, talks, last = ranking.features
    assert [feature.feature for feature in ranking.features] == [ACTS, TALKS, LAST]
    assert [feature.rank for feature in ranking.features] == [1, 2, 3]
    assert [feature.predicted_acting for feature in ranking.features] == [True, False, False]
    assert acts.acting_score is not None
    assert talks.acting_score is not None
    assert acts.acting_score > 0.5
    assert talks.acting_score < -0.5
    assert acts.interval is not None
    assert acts.interval.low <= acts.acting_score <= acts.interval.high
    assert acts.interval.low < acts.interval.high
    assert (last.acting_score, last.interval, last.n_targets, last.role_mass) == (None, None, 0, 0.0)
    assert (ranking.n_acting_tokens, ranking.n_discussing_tokens, ranking.top_k) == (40, 40, 32)


def test_targets_without_a_role_are_left_out_of_the_score_but_counted(
    subject: Subject, corpus: TokenActivations, passages: Passages
) -> None:
    acts = ranked(subject, corpus, passages).features[0]
    edges = connections(subject, corpus, [ACTS]).features[0].targets
    roles = {0: 1.0, 1: -1.0, 2: None, 3: None}
    assert acts.n_targets == 4
    assert [role.target for role in acts.targets] == [edge.target for edge in edges]
    assert [role.role for role in acts.targets] == [roles[edge.target.index] for edge in edges]
    first, second = (next(edge.twera for edge in edges if edge.target.index == index) for index in (0, 1))
    assert acts.acting_score == pytest.approx((first - second) / (first + second))
    assert acts.role_mass == pytest.approx((first + second) / sum(abs(edge.twera) for edge in edges))


def test_own_role_is_the_control_that_looks_at_no_target(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    by_feature = {feature.feature: feature for feature in ranked(subject, corpus, passages).features}
    assert by_feature[ACTS].own_role == 0.0
    assert by_feature[LAST].own_role == 1.0


def test_the_seed_decides_everything(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    assert ranked(subject, corpus, passages, seed=3) == ranked(subject, corpus, passages, seed=3)
    one, other = (ranked(subject, corpus, passages, seed=seed).features[0] for seed in (3, 4))
    assert one.interval != other.interval
    assert replace(one, interval=None) == replace(other, interval=None)


def test_top_k_limits_what_the_score_looks_at(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    acts = ranked(subject, corpus, passages, top_k=1).features[0]
    assert (acts.n_targets, acts.acting_score, acts.role_mass) == (1, 1.0, 1.0)


def test_shards_drawn_once_each_give_back_the_corpus_twera(subject: Subject, corpus: TokenActivations) -> None:
    targets = connections(subject, corpus, [ACTS]).features[0].targets
    sums = shard_sums(ACTS, targets, deal(subject, corpus, shards=20, resamples=1, seed=0))
    again = sums.weighted.sum(axis=0) / sums.target_sum.sum(axis=0) * sums.virtual
    np.testing.assert_allclose(again, [connection.twera for connection in targets], rtol=1e-9)
    assert sums.weighted.shape == (20, len(targets))


def test_a_stop_is_heard_between_candidates(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    class StopsAfterOne(SilentObserver):
        seen = 0

        def notify(self, event: Event) -> None:
            assert isinstance(event, StepProgress)
            self.seen += 1

        def should_stop(self) -> bool:
            return self.seen > 0

    observer = StopsAfterOne()
    found = connections(subject, corpus, [ACTS, TALKS])
    with pytest.raises(Interrupted):
        rank(subject, found, corpus, acting=passages[0], discussing=passages[1], seed=0, observer=observer)
    assert observer.seen == 1


def scored(index: int, score: float | None, low: float | None) -> RankedFeature:
    return RankedFeature(
        feature=FeatureId("plt", 0, index),
        rank=0,
        acting_score=score,
        interval=None if low is None else Interval(low=low, high=1.0),
        role_mass=1.0,
        n_targets=1,
        predicted_acting=False,
        own_role=None,
        targets=(),
    )


def summary(features: tuple[RankedFeature, ...]) -> list[tuple[int, int, bool]]:
    return [(feature.feature.index, feature.rank, feature.predicted_acting) for feature in features]


def test_order_is_by_score_with_ties_as_given_and_no_score_last() -> None:
    given = [
        scored(0, None, None),
        scored(1, 0.2, 0.1),
        scored(2, 0.5, -0.1),
        scored(3, 0.2, 0.05),
        scored(4, None, None),
        scored(5, -1.0, -1.0),
    ]
    assert summary(order(given)) == [(2, 1, False), (1, 2, True), (3, 3, True), (5, 4, False), (0, 5, False), (4, 6, False)]


def test_if_no_interval_clears_zero_the_first_alone_is_predicted() -> None:
    ordered = order([scored(0, -0.3, -0.5), scored(1, 0.4, -0.1), scored(2, 0.1, 0.0)])
    assert summary(ordered) == [(1, 1, True), (2, 2, False), (0, 3, False)]
    assert fell_back(ordered)
    assert not fell_back(order([scored(0, 0.4, 0.1), scored(1, 0.2, -0.1)]))


@pytest.mark.parametrize("best", [0.0, -0.2])
def test_if_the_first_does_not_score_above_zero_nobody_is_predicted(best: float) -> None:
    ordered = order([scored(0, best, -0.5), scored(1, -0.4, -0.8)])
    assert summary(ordered) == [(0, 1, False), (1, 2, False)]
    assert not fell_back(ordered)


def test_a_ranking_says_what_its_prediction_rests_on() -> None:
    def basis(*given: RankedFeature) -> str:
        features = order(given)
        return Ranking(
            features=features, method="made", top_k=1, n_acting_tokens=1, n_discussing_tokens=1, fallback=fell_back(features)
        ).basis

    assert basis(scored(0, 0.4, 0.1)).startswith("Predicted to act are")
    assert "the first alone" in basis(scored(0, 0.4, -0.1))
    assert basis(scored(0, -0.4, -0.5)).startswith("Nobody")


def test_few_unlike_passages_widen_the_interval(subject: Subject, corpus: TokenActivations, passages: Passages) -> None:
    """Acting passages that disagree: half of them look like discussion. Roles that stood still would hide it."""
    alike = ranked(subject, corpus, passages).features[0].interval
    off = np.zeros((20, 1))
    on = np.ones((20, 1))
    mixed = tokens((np.ones((40, 4)), np.vstack([np.hstack([on, off, off, off]), np.hstack([off, on, off, off])])), n_documents=4)
    unlike = next(each for each in ranked(subject, corpus, (mixed, passages[1])).features if each.feature == ACTS).interval
    assert alike is not None
    assert unlike is not None
    assert unlike.high - unlike.low > 2 * (alike.high - alike.low)


def test_without_any_score_nothing_is_predicted() -> None:
    assert summary(order([scored(0, None, None), scored(1, None, None)])) == [(0, 1, False), (1, 2, False)]
    assert order([]) == ()


def test_features_of_a_single_layer_have_no_score_and_nobody_is_predicted(tiny_sae_subject: Subject) -> None:
    """An SAE of one layer has no targets, so nothing but a feature's own role is known."""
    model, dictionary = tiny_sae_subject.model, tiny_sae_subject.dictionary
    own = observe(model, dictionary, tiny_sae_subject.corpus)
    acting, discussing = (observe(model, dictionary, part) for part in (tiny_sae_subject.corpus[:6], tiny_sae_subject.corpus[6:12]))
    sources = [FeatureId("sae", 1, index) for index in (7, 3, 20)]
    nothing = [FeatureConnections(source=source, targets=(), n_targets=0, n_unsupported=0, support_cutoff=20) for source in sources]
    found = DownstreamConnections(features=tuple(nothing), corpus_sha256="0" * 64, n_tokens=own.n_tokens)
    ranking = rank(tiny_sae_subject, found, own, acting=acting, discussing=discussing, seed=0, observer=SilentObserver())
    assert [(each.feature, each.rank) for each in ranking.features] == [(source, place) for place, source in enumerate(sources, 1)]
    for each in ranking.features:
        assert (each.acting_score, each.interval, each.n_targets, each.predicted_acting, each.targets) == (None, None, 0, False, ())
        first, second = (part.layers[1].toarray()[:, each.feature.index] for part in (acting, discussing))
        wins = np.mean([(one > second).mean() + 0.5 * (one == second).mean() for one in first])
        assert each.own_role == pytest.approx(2 * wins - 1)
    assert not ranking.fallback
    assert ranking.basis.startswith("Nobody")


def test_directions_are_ranked_over_layers_without_any(tiny_vector_subject: Subject) -> None:
    model, dictionary = tiny_vector_subject.model, tiny_vector_subject.dictionary
    own = observe(model, dictionary, tiny_vector_subject.corpus)
    acting, discussing = (observe(model, dictionary, part) for part in (tiny_vector_subject.corpus[:6], tiny_vector_subject.corpus[6:12]))
    found = connections(tiny_vector_subject, own, [FeatureId("vector", 2, 0), FeatureId("vector", 0, 4)])
    ranking = rank(tiny_vector_subject, found, own, acting=acting, discussing=discussing, seed=0, observer=SilentObserver())
    scored, last = ranking.features
    assert (scored.feature, scored.n_targets) == (FeatureId("vector", 0, 4), 6)
    twera = np.array([edge.twera for edge in found.features[1].targets])
    role = np.array([known.role for known in scored.targets])
    assert scored.acting_score == pytest.approx(float(twera @ role) / np.abs(twera).sum())
    assert scored.interval is not None
    assert (last.feature, last.acting_score, last.n_targets) == (FeatureId("vector", 2, 0), None, 0)
