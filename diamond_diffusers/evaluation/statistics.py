"""Means with intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000
# The 97.5 % point of the standard normal law.
NORMAL_QUANTILE = 1.959963984540054


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
    share, squared = sum(outcomes) / count, NORMAL_QUANTILE**2
    centre = (share + squared / (2 * count)) / (1 + squared / count)
    half = NORMAL_QUANTILE * math.sqrt(share * (1 - share) / count + squared / (4 * count**2)) / (1 + squared / count)
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0))


def mean(values: Sequence[float], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> Estimate:
    """The mean with its percentile bootstrap interval.

    Raises:
        ValueError: there are no values.
    """
    if len(values) == 0:
        raise ValueError("values is empty; give at least one")
    array = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(array), size=(num_resamples, len(array)))
    lower, upper = np.quantile(array[picks].mean(1), [0.025, 0.975])
    return Estimate(float(array.mean()), float(lower), float(upper))


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
    return mean(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), seed, num_resamples)


def means_by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, float]:
    """The mean of the values of each group, in the order in which groups first come."""
    gathered: dict[str, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        gathered.setdefault(group, []).append(value)
    return {group: sum(members) / len(members) for group, members in gathered.items()}
