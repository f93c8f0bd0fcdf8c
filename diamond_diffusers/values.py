"""The value function `V(y, kappa) = log E[exp(r(z)) | y]` and its gradients, from look-ahead samples.

Gradients are given as the shift that they make to the denoiser, `kappa^2 grad_y V`, which is how guidance uses them:
`D_r = D + guidance_strength * shift` is the denoiser of the reward-tilted law at strength 1, and the shift stays finite
where `y` does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .levels import Level, expand, signal_and_noise


def value(rewards: Tensor, log_weights: Tensor) -> Tensor:
    """`V` of `N` observations from the (scaled) rewards `[N, K]` and log-weights `[N, K]` of their look-aheads.

    The estimate is consistent in K; its bias falls as 1 / K.
    """
    return torch.logsumexp(log_weights + rewards, 1) - torch.logsumexp(log_weights, 1)


def tilted_mean_shift(samples: Tensor, rewards: Tensor, log_weights: Tensor) -> Tensor:
    """`E_tilted[z | y] - E[z | y]`, which equals `kappa^2 grad_y V`; no reward gradient is needed.

    Both means are taken over the same samples, so that what they share cancels.

    Args:
        samples: look-aheads `[N, K, ...]` with K at least 2.
        rewards: their scaled rewards `[N, K]`.
        log_weights: `[N, K]`.

    Returns:
        `[N, ...]`.
    """
    difference = torch.softmax(log_weights + rewards, 1) - torch.softmax(log_weights, 1)
    return torch.einsum("nk,nk...->n...", difference.to(samples.dtype), samples)


def pathwise_shift(values: Tensor, x: Tensor, noise_to_signal: Level) -> Tensor:
    """`kappa^2 grad_y V` by differentiating the value through its look-aheads and their weights.

    Args:
        values: `V` of each row, `[N]`, with a graph to `x`.
        x: observations `[N, ...]` in the bounded coordinate, requiring gradients.
        noise_to_signal: their level; at pure noise, where `x` holds nothing of `z`, the shift is zero.

    Returns:
        `[N, ...]`, without a graph.
    """
    (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values))
    alpha, sigma = signal_and_noise(noise_to_signal)
    # grad_y = alpha grad_x and kappa^2 = sigma^2 / alpha^2.
    coefficient = torch.where(alpha > 0, sigma**2 / alpha, 0.0)
    return expand(coefficient, gradient) * gradient


def isotropic_shift(values: Tensor, samples: Tensor, noise_to_signal: Level) -> Tensor:
    """`kappa^2 grad_y V` with the gradient taken at the look-aheads and no derivative of the network.

    `d E[z | y] / dy = Cov[z | y] / kappa^2`; the covariance is taken as that of data of unit variance,
    `kappa^2 / (1 + kappa^2)` times the identity (compare MPGD, arXiv 2311.16424). Exact for such data and a linear
    reward, an approximation otherwise; finite at pure noise.

    Args:
        values: `V` of each row, `[N]`, with a graph to `samples`.
        samples: look-aheads `[N, K, ...]`, requiring gradients.
        noise_to_signal: level of the observations.

    Returns:
        `[N, ...]`, without a graph.
    """
    (gradient,) = torch.autograd.grad(values, samples, torch.ones_like(values))
    _, sigma = signal_and_noise(noise_to_signal)
    return expand(sigma**2, gradient) * gradient.sum(1)
