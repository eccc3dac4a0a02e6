from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from audit.records import Interval
from audit.statistics import auroc, bootstrap_interval, holm, mcnemar_exact, normalised_rank, paired_effect, percentile_interval, wilson

PROBABILITIES = st.floats(0, 1)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_statsmodels(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = proportion_confint(k, n, method="wilson")
    found = wilson(k, n)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert 0 <= found.low <= k / n <= found.high <= 1


def test_wilson_knows_nothing_without_trials_and_refuses_nonsense() -> None:
    assert wilson(0, 0) == Interval(low=0, high=1)
    for k, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="is not a proportion"):
            wilson(k, n)


@given(PAIRS)
def test_paired_effect_is_the_clustered_ols_of_statsmodels_and_never_surer_than_independent_pairs(
    pairs: list[tuple[bool, bool, int]],
) -> None:
    treated, baseline, clusters = map(list, zip(*pairs, strict=True))
    difference = np.array(treated, float) - np.array(baseline, float)
    effect, interval = paired_effect(treated, baseline, clusters)
    assert effect == pytest.approx(difference.mean())
    assert -1 <= interval.low <= effect + 1e-12
    assert effect - 1e-12 <= interval.high <= 1
    n_groups = len(set(clusters))
    if n_groups > 1 and np.ptp(difference) > 0:
        fit = sm.OLS(difference, np.ones(len(difference))).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
        error = max(fit.bse[0], sm.OLS(difference, np.ones(len(difference))).fit().bse[0])
        reach = float(student.ppf(0.975, n_groups - 1)) * error
        assert interval.low == pytest.approx(max(-1, effect - reach), abs=1e-9)
        assert interval.high == pytest.approx(min(1, effect + reach), abs=1e-9)


def test_clusters_whose_sums_agree_are_not_certainty() -> None:
    clusters = [v for v in range(4) for _ in range(6)]
    effect, interval = paired_effect([0] * 24, [1, 0, 0, 0, 0, 0] * 4, clusters)
    assert effect == pytest.approx(-1 / 6)
    assert interval.high - interval.low > 0.3


def test_differences_that_are_all_the_same_are_not_certainty() -> None:
    clusters = [v for v in range(4) for _ in range(8)]
    effect, interval = paired_effect([0] * 32, [0] * 32, clusters)
    assert effect == 0
    assert interval.high == wilson(0, 32).high == -interval.low
    effect, interval = paired_effect([1] * 32, [0] * 32, clusters)
    assert (effect, interval.high) == (1, 1)
    assert interval.low == pytest.approx(wilson(32, 32).low)


def test_one_cluster_says_nothing_of_others() -> None:
    assert paired_effect([1, 0], [0, 0], [3, 3]) == (0.5, Interval(low=-1, high=1))


@pytest.mark.parametrize(("treated", "clusters"), [([], []), ([1, 0], [0])])
def test_paired_effect_refuses_what_is_not_paired(treated: list[int], clusters: list[int]) -> None:
    with pytest.raises(ValueError, match="equally many"):
        paired_effect(treated, treated, clusters)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_mcnemar_is_the_binomial_tail(pairs: list[tuple[bool, bool]]) -> None:
    gained = sum(after and not before for after, before in pairs)
    changed = sum(after != before for after, before in pairs)
    tail = sum(math.comb(changed, k) for k in range(gained, changed + 1)) / 2**changed
    assert mcnemar_exact([after for after, _ in pairs], [before for _, before in pairs]) == pytest.approx(tail)


@given(st.lists(PROBABILITIES, min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_values: list[float]) -> None:
    places = range(len(p_values))
    families = [family for size in range(1, len(p_values) + 1) for family in combinations(places, size)]
    expected = [max(min(1.0, len(f) * min(p_values[j] for j in f)) for f in families if i in f) for i in places]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[0.5], [0.01, 0.04, 0.03, 0.005], [0.02, 0.02, 0.9, 0.0, 1.0], list(np.linspace(0.001, 0.2, 12))])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_holm_of_nothing() -> None:
    assert holm([]) == ()


VALUES = st.lists(st.integers(-3, 3).map(lambda k: k / 2), min_size=1, max_size=25)


@given(VALUES, VALUES)
def test_auroc_counts_every_pair(positive: list[float], negative: list[float]) -> None:
    won = sum((p > n) + (p == n) / 2 for p in positive for n in negative)
    assert auroc(positive, negative) == pytest.approx(won / (len(positive) * len(negative)))
    assert auroc(positive, negative) + auroc(negative, positive) == pytest.approx(1)


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_auroc_refuses_what_has_no_rank(positive: list[float], negative: list[float]) -> None:
    with pytest.raises(ValueError, match="a value|no rank"):
        auroc(positive, negative)


def test_percentile_interval_is_the_middle() -> None:
    found = percentile_interval(np.arange(1001))
    assert (found.low, found.high) == pytest.approx((25, 975))
    with pytest.raises(ValueError, match="no samples"):
        percentile_interval([])


def test_bootstrap_is_seeded_and_covers_like_the_normal_theory() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_interval(lambda index: float(values[index].mean()), 400, seed=1, resamples=2000)
    assert found == bootstrap_interval(lambda index: float(values[index].mean()), 400, seed=1, resamples=2000)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_normalised_rank() -> None:
    assert [normalised_rank(rank, 5) for rank in (1, 3, 5)] == [0, 0.5, 1]
    assert normalised_rank(1, 1) is None
    with pytest.raises(ValueError, match="rank 0 of 5"):
        normalised_rank(0, 5)
