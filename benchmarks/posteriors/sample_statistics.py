"""How far apart two sets of samples are, how wide one is, and whether two lists of numbers rank alike."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
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


def total_deviation(samples: Tensor) -> Tensor:
    """Root of the trace of the covariance, its mean over `N` laws: `[]` from samples `[N, n, d]`; 0 for single ones."""
    if samples.shape[1] == 1:
        return samples.new_zeros(())
    return samples.var(1).sum(-1).mean().sqrt()


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rank correlation of two lists `[N]`, ties at their mean rank; None where either is constant."""
    ranks = [torch.from_numpy(rankdata(values.cpu())) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    norms = centred[0].norm() * centred[1].norm()
    return (centred[0] @ centred[1] / norms).item() if norms > 0 else None
