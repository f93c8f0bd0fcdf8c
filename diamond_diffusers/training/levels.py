"""The outer noise levels at which a map is distilled, and their weights."""

from __future__ import annotations

import torch
from torch import Tensor

PURE_NOISE_SHARE = 0.1
"""Of the rows, observed at pure noise, where every run begins."""
SMALLEST_OUTER_TIME = 0.02
SMALLEST_WEIGHTED_LEVEL = 0.25
"""Below it a row's weight hardly grows."""


def draw_levels(count: int, pure_noise_share: float = PURE_NOISE_SHARE) -> Tensor:
    """Outer noise-to-signal ratios `[count]`, float64: uniform in rectified-flow time, and some at pure noise."""
    t = (SMALLEST_OUTER_TIME + (1 - SMALLEST_OUTER_TIME) * torch.rand(count, dtype=torch.float64)).clamp(max=1)
    t = torch.where(torch.rand(count) < pure_noise_share, 1.0, t)
    return t / (1 - t)


def per_posterior_variance(noise_to_signal: Tensor) -> Tensor:
    """`1 + 1 / kappa^2`, the inverse variance of a clean sample given an observation, were the data standard normal.

    In units of that variance, the narrow posteriors of low levels count like the others (as in arXiv 2206.00364). The
    weights of the lowest levels are limited, since their rows would otherwise decide every update.
    """
    return 1 + 1 / (noise_to_signal**2 + SMALLEST_WEIGHTED_LEVEL**2)
