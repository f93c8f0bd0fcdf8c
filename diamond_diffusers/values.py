"""The value function `V(y, kappa) = log E[exp(r(z)) | y]` and its gradients, from look-ahead samples.

Gradients are given as the shift that they make to the denoiser, `kappa^2 grad_y V`, which is how guidance uses them:
`D_r = D + guidance_strength * shift` is the denoiser of the reward-tilted law at strength 1, and the shift stays finite
where `y` does not. A gradient that is taken by differentiation comes apart from the coefficient which makes it a shift,
since its direction is of use where the coefficient is not: at pure noise.
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


def pathwise_gradient(values: Tensor, x: Tensor) -> Tensor:
    """`grad_x V`, by differentiating the value through its look-aheads and their weights.

    Args:
        values: `V` of each row, `[N]`, with a graph to `x`.
        x: observations `[N, ...]` in the bounded coordinate, requiring gradients.

    Returns:
        `[N, ...]`, without a graph.
    """
    (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values))
    return gradient


def pathwise_coefficient(noise_to_signal: Level) -> Tensor:
    """What `grad_x V` is multiplied by to be the shift; zero at pure noise, where `x` holds nothing of `z`."""
    alpha, sigma = signal_and_noise(noise_to_signal)
    # grad_y = alpha grad_x and kappa^2 = sigma^2 / alpha^2.
    return torch.where(alpha > 0, sigma**2 / alpha, 0.0)


def isotropic_gradient(values: Tensor, samples: Tensor) -> Tensor:
    """The gradient of the value taken at its look-aheads and summed over them: no derivative of the network.

    Args:
        values: `V` of each row, `[N]`, with a graph to `samples`.
        samples: look-aheads `[N, K, ...]`, requiring gradients.

    Returns:
        `[N, ...]`, without a graph.
    """
    (gradient,) = torch.autograd.grad(values, samples, torch.ones_like(values))
    return gradient.sum(1)


def isotropic_coefficient(noise_to_signal: Level) -> Tensor:
    """What the gradient at the look-aheads is multiplied by to be the shift; finite at pure noise.

    `d E[z | y] / dy = Cov[z | y] / kappa^2`; the covariance is taken as that of data of unit variance,
    `kappa^2 / (1 + kappa^2)` times the identity (compare MPGD, arXiv 2311.16424). Exact for such data and a linear
    reward, an approximation otherwise.
    """
    _, sigma = signal_and_noise(noise_to_signal)
    return sigma**2


def hybrid_shift(
    pathwise: Tensor, tilted_mean: Tensor, samples: Tensor, rewards: Tensor, log_weights: Tensor
) -> Tensor:
    """Two estimates of one shift, each row's in the proportion of their errors.

    The tilted mean `T` is `sum_k c_k z_k` with `c = softmax(log w + r) - softmax(log w)`. Across all directions but the
    few that the reward sees, that is noise of the total variance `V = s^2 sum_k c_k^2`, with `s^2` the total variance
    of the look-aheads. It needs no derivative, and it says how far from `T` the truth is to be sought. The pathwise
    estimate `P` has an error that nothing tells beforehand (noise of the derivatives, a map or weights that are not
    exact), but `E |P - T|^2 = V + E |error of P|^2` where the two err independently. Weighing by the inverse of both
    gives `P` the weight `V / |P - T|^2`, at most 1: the James-Stein estimator that shrinks `T` towards `P` (Green and
    Strawderman, "A James-Stein type estimator for combining unbiased and possibly biased estimators", 1991). Gaps up to
    twice `V` count as noise, since of few look-aheads `|P - T|^2` scatters widely about its mean.

    Root-mean-square of the relative errors in 18 cases on a mixture in d dimensions: three levels, three rewards, and
    GLASS or weighted look-aheads. "Better" takes the better of the two in each case, which is not known beforehand:

    ==  ==  ========  ===========  ======  ======
    d   K   pathwise  tilted mean  better  hybrid
    ==  ==  ========  ===========  ======  ======
    2   4   1.14      0.63         0.46    0.47
    2   16  0.24      0.40         0.24    0.24
    2   64  0.21      0.27         0.15    0.17
    4   4   1.77      0.82         0.66    0.58
    4   16  0.62      0.49         0.40    0.34
    4   64  0.51      0.36         0.29    0.25
    32  4   0.99      2.02         0.57    0.52
    32  16  7.57      1.53         0.64    0.43
    32  64  1.62      0.94         0.56    0.43
    ==  ==  ========  ===========  ======  ======

    `tests/core/test_values.py` makes them. Large pathwise errors are those of derivatives between two modes.

    Args:
        pathwise, tilted_mean: the shifts `[N, ...]`.
        samples: look-aheads `[N, K, ...]` with K at least 2.
        rewards: their scaled rewards `[N, K]`.
        log_weights: `[N, K]`.

    Returns:
        `[N, ...]`.
    """
    weights = torch.softmax(log_weights, 1)
    changes = torch.softmax(log_weights + rewards, 1) - weights
    mean = torch.einsum("nk,nk...->n...", weights.to(samples.dtype), samples)
    squares = (samples - mean.unsqueeze(1)).flatten(2).square().sum(2)
    tiny = torch.finfo(samples.dtype).tiny
    # Of weighted samples; one that has all the weight tells no variance.
    variance = (weights * squares).sum(1) / (1 - weights.square().sum(1)).clamp(min=1e-6)
    noise = variance * changes.square().sum(1)
    gap = (pathwise - tilted_mean).flatten(1).square().sum(1)
    share = (2 * noise / gap.clamp(min=tiny)).clamp(max=1)
    return tilted_mean + expand(share, pathwise) * (pathwise - tilted_mean)
