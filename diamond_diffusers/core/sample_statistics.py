"""How far apart two sets of samples are, and how wide one is."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def energy_distance(first: Tensor, second: Tensor, share_noise: bool = False) -> Tensor:
    """Estimates `2 E|X - Y| - E|X - X'| - E|Y - Y'|` without bias; 0 for equal laws (Szekely and Rizzo, 2013).

    An unbiased estimate of a small distance may be negative. A set of one sample stands for the law that is that point.

    Args:
        first: `[..., n, d]`.
        second: `[..., m, d]`.
        share_noise: whether sample `k` of one set comes from the same noise as sample `k` of the other. Such pairs are
            left out, so that the estimate is unbiased; it varies the less, the more alike they are.

    Returns:
        `[...]`.
    """
    between = _distances(first, second)
    if share_noise:
        own = torch.eye(*between.shape[-2:], dtype=torch.bool, device=between.device)
        mean_between = between.masked_fill(own, 0).sum((-1, -2)) / (~own).sum()
    else:
        mean_between = between.mean((-1, -2))
    return 2 * mean_between - _spread(first) - _spread(second)


def _spread(samples: Tensor) -> Tensor:
    """The mean distance between different members of a set."""
    count = samples.shape[-2]
    return _distances(samples, samples).sum((-1, -2)) / max(count * (count - 1), 1)


def _distances(first: Tensor, second: Tensor) -> Tensor:
    # Differences of inner products would lose the digits that small distances are made of.
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def total_variance(samples: Tensor) -> Tensor:
    """The trace of the covariance of each of `N` laws: `[N]` from samples `[N, n, d]`; 0 for single ones."""
    if samples.shape[1] == 1:
        return samples.new_zeros(len(samples))
    return samples.var(1).sum(-1)


def total_deviation(samples: Tensor) -> Tensor:
    """Root of the trace of the covariance, its mean over `N` laws: `[]` from samples `[N, n, d]`; 0 for single ones."""
    return total_variance(samples).mean().sqrt()


def mean_with_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values `[N]`, at least 2, and its standard error."""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def deviation_ratio(variances: Tensor, exact: Tensor) -> tuple[float, float]:
    """The total deviation over `N` laws divided by the exact one, and its standard error.

    Args:
        variances: `total_variance` of the samples of each law, `[N]` float64, at least 2.
        exact: that of the exact samples of the same laws, `[N]`.

    Returns:
        NaN where the exact samples do not vary at all. The error is that of a ratio of means whose terms come in pairs,
        to first order.
    """
    if exact.mean() == 0:
        return math.nan, math.nan
    squared = variances.mean() / exact.mean()
    if squared == 0:
        return 0.0, 0.0
    _, error = mean_with_error((variances - squared * exact) / exact.mean())
    ratio = squared.sqrt().item()
    return ratio, error / (2 * ratio)
