"""The acting score and its interval against the definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.ranking.score import ShardSums, acting_score, bootstrap, resample

WEIGHTS = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=1, max_size=8)


@given(WEIGHTS, st.data())
def test_score_is_the_weighted_mean_of_signed_roles(weights: list[float], data: st.DataObject) -> None:
    one_role = st.one_of(st.floats(-1, 1), st.just(float("nan")))
    roles = data.draw(st.lists(one_role, min_size=len(weights), max_size=len(weights)))
    score = acting_score(np.array(weights), np.array(roles))
    known = [(w, r) for w, r in zip(weights, roles, strict=True) if r == r]
    mass = sum(abs(w) for w, _ in known)
    if mass == 0:
        assert score.value is None
        assert score.role_mass == 0
        return
    assert score.value == pytest.approx(sum(w * r for w, r in known) / mass, abs=1e-12)
    assert -1 - 1e-12 <= score.value <= 1 + 1e-12
    assert score.role_mass == pytest.approx(mass / sum(abs(w) for w in weights))


def test_a_negative_connection_to_an_acting_target_counts_against() -> None:
    assert acting_score(np.array([-2.0, 2.0]), np.array([1.0, -1.0])).value == -1.0


def test_every_resample_draws_as_many_shards_as_there_are() -> None:
    drawn = resample(20, 200, seed=3)
    assert drawn.shape == (200, 20)
    assert set(drawn.sum(axis=1)) == {20.0}
    np.testing.assert_array_equal(drawn, resample(20, 200, seed=3))
    assert (drawn != resample(20, 200, seed=4)).any()


def made_sums(seed: int = 0, n_shards: int = 20, n_targets: int = 5) -> ShardSums:
    rng = np.random.default_rng(seed)
    target_sum = rng.uniform(1, 2, (n_shards, n_targets))
    return ShardSums(
        weighted=target_sum * rng.uniform(0.5, 1.5, (n_shards, n_targets)),
        target_sum=target_sum,
        virtual=rng.normal(size=n_targets),
    )


def test_interval_holds_percentiles_of_scores_recomputed_from_resampled_sums() -> None:
    sums, role = made_sums(), np.array([0.9, -0.2, np.nan, 0.4, -1.0])
    drawn = resample(20, 200, seed=1)
    scores = []
    for counts in drawn:
        shards = np.repeat(np.arange(20), counts.astype(int))
        twera = sums.weighted[shards].sum(axis=0) / sums.target_sum[shards].sum(axis=0) * sums.virtual
        scores.append(acting_score(twera, role).value)
    interval = bootstrap(sums, role, drawn)
    assert interval is not None
    assert interval.low == pytest.approx(np.quantile(scores, 0.025), rel=1e-9)
    assert interval.high == pytest.approx(np.quantile(scores, 0.975), rel=1e-9)


def test_equal_shards_leave_nothing_uncertain() -> None:
    one = made_sums(n_shards=1)
    sums = ShardSums(weighted=np.repeat(one.weighted, 6, axis=0), target_sum=np.repeat(one.target_sum, 6, axis=0), virtual=one.virtual)
    role = np.linspace(-1, 1, 5)
    interval = bootstrap(sums, role, resample(6, 50, seed=0))
    score = acting_score(one.weighted[0] / one.target_sum[0] * one.virtual, role).value
    assert interval is not None
    assert interval.low == pytest.approx(score)
    assert interval.high == pytest.approx(score)


def test_one_shard_gives_no_interval() -> None:
    assert bootstrap(made_sums(n_shards=1), np.ones(5), resample(1, 50, seed=0)) is None


def test_a_target_absent_from_a_resample_weighs_nothing_there() -> None:
    """One shard alone holds the second target; resamples without it score on the first, not on 0/0."""
    sums = ShardSums(weighted=np.array([[1.0, 0], [1, 0], [1, 1]]), target_sum=np.array([[1.0, 0], [1, 0], [1, 1]]), virtual=np.ones(2))
    interval = bootstrap(sums, np.array([1.0, -1.0]), np.array([[3.0, 0, 0], [0, 3, 0]]))
    assert interval is not None
    assert (interval.low, interval.high) == (1.0, 1.0)


def test_no_role_gives_no_interval() -> None:
    assert bootstrap(made_sums(), np.full(5, np.nan), resample(20, 10, seed=0)) is None


def test_roles_of_their_own_in_every_resample_widen_the_interval() -> None:
    sums, drawn = made_sums(), resample(20, 200, seed=1)
    role = np.tile(np.linspace(-0.5, 0.9, 5), (200, 1))
    role[::3, 2] = np.nan
    scores = []
    for counts, roles in zip(drawn, role, strict=True):
        twera = (counts @ sums.weighted) / (counts @ sums.target_sum) * sums.virtual
        scores.append(acting_score(twera, roles).value)
    interval, still = bootstrap(sums, role, drawn), bootstrap(sums, role[1], drawn)
    assert interval is not None
    assert still is not None
    assert interval.low == pytest.approx(np.quantile(scores, 0.025), rel=1e-9)
    assert interval.high == pytest.approx(np.quantile(scores, 0.975), rel=1e-9)
    assert interval.high - interval.low > still.high - still.low
