"""Intervals, paired and clustered effects, exact tests and ranks: thin over scipy, each checked against another source.

Everything is 95 % and two-sided unless it says otherwise. Nothing here knows what an outcome is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from audit.records import Interval

LEVEL = 0.95


def wilson(k: int, n: int) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), without continuity correction.

    Args:
        k: successes.
        n: trials; with none, anything is possible and the interval is [0, 1].

    Raises:
        ValueError: not 0 ≤ k ≤ n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion")
    if n == 0:
        return Interval(low=0.0, high=1.0)
    found = stats.binomtest(k, n).proportion_ci(LEVEL, method="wilson")
    return Interval(low=0.0 if k == 0 else float(found.low), high=1.0 if k == n else float(found.high))


def paired_effect(treated: Sequence[float], baseline: Sequence[float], clusters: Sequence[int]) -> tuple[float, Interval]:
    """Mean paired difference of outcomes in [0, 1], with an interval that lets pairs of a cluster resemble each other.

    The variance is the cluster-robust one of a mean, G/(G−1) · Σ_g (Σ_i∈g e_i)² / N² (Liang and Zeger 1986, with the
    usual small-sample factor), the quantile Student's t with G−1 degrees of freedom. With few clusters (below about
    ten) such intervals are known to be somewhat too short when clusters differ much in size or spread; the t
    quantile mends most, not all of it. Clusters may agree by luck, and with few of them often do, so the standard error
    is never taken below that of independent pairs. Where every difference is the same both are 0, which is not
    knowledge: the interval then reaches as far as Wilson's does for 0 of N. With one cluster it is [−1, 1].

    Args:
        treated: one outcome a pair.
        baseline: the other outcome of the same pair.
        clusters: the cluster of each pair.

    Raises:
        ValueError: no pair, or lengths that differ.
    """
    difference = np.asarray(treated, dtype=float) - np.asarray(baseline, dtype=float)
    groups, membership = np.unique(np.asarray(clusters), return_inverse=True)
    n, n_groups = len(difference), len(groups)
    if n == 0 or len(membership) != n:
        raise ValueError("pairs and clusters must be equally many, and at least one")
    effect = float(difference.mean())
    if n_groups < 2:
        return effect, Interval(low=-1.0, high=1.0)
    if np.ptp(difference) == 0:
        reach = wilson(0, n).high
    else:
        sums = np.bincount(membership, weights=difference - effect)
        clustered = math.sqrt(n_groups / (n_groups - 1) * float(sums @ sums)) / n
        independent = float(difference.std(ddof=1)) / math.sqrt(n)
        error = max(clustered, independent)
        reach = float(stats.t.ppf(0.5 + LEVEL / 2, n_groups - 1)) * error
    return effect, Interval(low=max(-1.0, effect - reach), high=min(1.0, effect + reach))


def mcnemar_exact(treated: Sequence[bool], baseline: Sequence[bool]) -> float:
    """One-sided exact McNemar test: p for at least so many pairs that turn from no to yes, were either turn as likely.

    Pairs that do not change say nothing; without any change p is 1. Pairs count as independent here, which is why a
    verdict also asks for the clustered interval of :func:`paired_effect`.

    Raises:
        ValueError: lengths differ.
    """
    pairs = list(zip(treated, baseline, strict=True))
    gained = sum(bool(after) and not before for after, before in pairs)
    lost = sum(bool(before) and not after for after, before in pairs)
    return float(stats.binomtest(gained, gained + lost, alternative="greater").pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Step-down adjusted p-values (Holm 1979), in the order given: below α, they hold the family-wise error at α."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[i]))
        adjusted[i] = largest
    return tuple(adjusted)


def auroc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Probability that a value of ``positive`` is above one of ``negative``, ties counted half: the Mann–Whitney U, scaled.

    Raises:
        ValueError: one side is empty or holds a NaN.
    """
    above, below = np.asarray(positive, dtype=float).ravel(), np.asarray(negative, dtype=float).ravel()
    if not len(above) or not len(below):
        raise ValueError("both sides need a value")
    both = np.concatenate([above, below])
    if np.isnan(both).any():
        raise ValueError("NaN has no rank")
    ranks = stats.rankdata(both)[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def percentile_interval(samples: ArrayLike, level: float = LEVEL) -> Interval:
    """The middle ``level`` of resampled statistics.

    Raises:
        ValueError: there is no sample.
    """
    values = np.asarray(samples, dtype=float).ravel()
    if not len(values):
        raise ValueError("no samples")
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(low=float(low), high=float(high))


def bootstrap_interval(statistic: Callable[[NDArray[np.intp]], float], n: int, *, seed: int, resamples: int = 200) -> Interval:
    """Percentile bootstrap interval (Efron 1979).

    Args:
        statistic: computes the statistic from the indices of a resample, (n,) with repeats.
        n: items to resample: the independent ones, such as documents, variants or shards.
        seed: of the draws.
        resamples: how many.
    """
    generator = np.random.default_rng(seed)
    return percentile_interval([statistic(generator.integers(0, n, size=n)) for _ in range(resamples)])


def normalised_rank(rank: int, n: int) -> float | None:
    """(rank − 1)/(n − 1): 0 is first, 1 last, 0.5 chance; None when there is nothing to rank.

    Raises:
        ValueError: not 1 ≤ rank ≤ n.
    """
    if not 1 <= rank <= n:
        raise ValueError(f"rank {rank} of {n}")
    return (rank - 1) / (n - 1) if n > 1 else None
