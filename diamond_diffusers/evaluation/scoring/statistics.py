"""Means with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
NORMAL_QUANTILE = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
"""Half the width of the interval of a mean, in units of its standard error."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval."""

    mean: float
    lower: float
    upper: float


def proportion(outcomes: Sequence[bool]) -> Estimate:
    """The share of true outcomes with Wilson's interval, which is sound near 0 and 1 as well.

    Raises:
        ValueError: there are no outcomes.
    """
    count = len(outcomes)
    if count == 0:
        raise ValueError("outcomes is empty; give at least one")
    successes = sum(map(bool, outcomes))
    interval = stats.binomtest(successes, count).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(successes / count, float(interval.low), float(interval.high))


def mean(values: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """The mean with its percentile bootstrap interval.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("values is empty; give at least one")
    array = np.asarray(values, dtype=np.float64)
    average = float(array.mean())
    if len(array) == 1:
        return Estimate(average, average, average)
    found = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=num_resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(average, float(found.confidence_interval.low), float(found.confidence_interval.high))


def clustered_mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean over clusters of the mean within each, such as over prompts of that of their images.

    Images of one prompt are not independent, so that clusters are resampled. Where each has one outcome of 0 or 1, the
    interval is Wilson's, which is sound near 0 and 1 as well.

    Raises:
        ValueError: there are no values.
    """
    means = list(means_by_group(values, clusters).values())
    if len(means) == len(values) and all(value in (0, 1) for value in values):
        return proportion([bool(value) for value in values])
    return mean(means)


def mean_of_group_means(values: Sequence[float], groups: Sequence[str], seed: int = 0) -> Estimate:
    """The mean over groups of the mean within each, with its bootstrap interval: each group is resampled for itself.

    Raises:
        ValueError: there are no values.
    """
    gathered: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        gathered.setdefault(group, []).append(value)
    if not gathered:
        raise ValueError("values is empty; give at least one")
    random = np.random.default_rng(seed)
    average, resampled = 0.0, np.zeros(NUM_RESAMPLES)
    for members in gathered.values():
        array = np.asarray(members, dtype=np.float64)
        average += float(array.mean()) / len(gathered)
        resampled += _resampled_sums(random, array[:, None])[:, 0] / (len(array) * len(gathered))
    return _percentile(average, resampled)


def pooled_mean(values: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The mean of all values of all clusters, with its bootstrap interval: clusters are resampled whole.

    Raises:
        ValueError: there are no values.
    """
    pairs = np.asarray([(sum(cluster), len(cluster)) for cluster in values if len(cluster) > 0], dtype=np.float64)
    if len(pairs) == 0:
        raise ValueError("values is empty; give at least one")
    total, count = pairs.sum(0)
    resampled = _resampled_sums(np.random.default_rng(seed), pairs)
    return _percentile(float(total / count), resampled[:, 0] / resampled[:, 1])


def _resampled_sums(random: np.random.Generator, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums `[NUM_RESAMPLES, d]` of as many of the rows `[n, d]` as there are, drawn with replacement."""
    # In parts that stay small for thousands of rows.
    parts = np.array_split(np.arange(NUM_RESAMPLES), 1 + NUM_RESAMPLES * len(rows) // 2_000_000)
    drawn = (random.integers(len(rows), size=(len(part), len(rows))) for part in parts)
    return np.concatenate([np.stack([column[chosen].sum(1) for column in rows.T], 1) for chosen in drawn])


def _percentile(average: float, resampled: NDArray[np.float64]) -> Estimate:
    lower, upper = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(average, float(lower), float(upper))


def paired_difference(
    first: Sequence[float], second: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """The mean of `first - second` with its percentile bootstrap interval; the pairs are resampled, not their members.

    Raises:
        ValueError: the two are empty or differ in length.
    """
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(
            f"first holds {len(first)} and second {len(second)} numbers; give as many of both, and at least one"
        )
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean(differences.tolist(), seed, num_resamples)


def means_by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean of the values of each group, in the order in which groups first come."""
    gathered: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        gathered.setdefault(group, []).append(value)
    return {group: sum(members) / len(members) for group, members in gathered.items()}
