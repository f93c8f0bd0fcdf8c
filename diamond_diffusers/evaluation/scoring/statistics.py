"""Means with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
