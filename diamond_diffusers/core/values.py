"""The value function `V(y, kappa) = log E[exp(r(z)) | y]` and its gradients, from look-ahead samples.

Gradients are given as the shift that they make to the denoiser, `kappa^2 grad_y V`, which is how guidance uses them:
`D_r = D + strength * shift` is the denoiser of the reward-tilted law at strength 1, and the shift stays finite
where `y` does not. A gradient that is taken by differentiation comes apart from the coefficient which makes it a shift,
since its direction is of use where the coefficient is not: at pure noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .levels import Level, signal_and_noise
from .tensors import expand

BARRIER = 1e6
"""Below minus this lie the final values of images that violate a constraint, and above it those of all others.

Scaled rewards that float32 tells apart hardly come near it, while numbers of its size are still told apart by less than
0.1 nats: a violation from another.
"""


def scaled_rewards(rewards: Tensor, scales: Tensor, violations: Tensor | None = None) -> Tensor:
    """`scales * rewards - violations`, and `-inf` where a reward is NaN, as that of an image which has no score.

    Args:
        rewards: `[N, ...]`.
        scales: of each row, `[N]`, or `[]` of all; constraints are not scaled.
        violations: how far images are from holding all constraints, in nats, of the shape of `rewards`: 0 where they do
            and positive elsewhere; None where there are none.
    """
    scaled = expand(scales, rewards) * rewards
    return torch.where(rewards.isnan(), -math.inf, scaled if violations is None else scaled - violations)


def final_values(rewards: Tensor, scales: Tensor, violations: Tensor | None = None) -> Tensor:
    """The values of clean images, without a graph: those of `scaled_rewards` but for constraints; arguments as there.

    Constraints restrict the law to the images that hold them, `p(z) 1[all hold] exp(scale * reward)`. Images
    that violate one therefore lie below all others, however high their reward: at `-BARRIER - 1 - violation`, a weight
    of zero beside any image that holds. (`-inf` would say nothing where none of a prompt's images does.)

    Noisy states have no such barrier. The value of one is an estimate from a few blurred guesses of its image, and a
    state that a barrier has dropped may have led to an image that holds: the samples' law would not be the one above.
    """
    values = scaled_rewards(rewards, scales, violations).detach()
    if violations is None:
        return values
    barred = torch.where(violations > 0, -BARRIER - 1 - violations.detach(), values.clamp(min=-BARRIER))
    return torch.where(rewards.isnan(), -math.inf, barred)


def value(rewards: Tensor, log_weights: Tensor) -> Tensor:
    """`V` of `N` observations from the (scaled) rewards `[N, K]` and log-weights `[N, K]` of their look-aheads.

    The estimate is consistent in K; its bias falls as 1 / K. Where all rewards are `-inf` it is `-inf`, without a
    gradient.
    """
    values = torch.logsumexp(tilted_log_weights(rewards, log_weights), 1) - torch.logsumexp(log_weights, 1)
    return torch.where(_is_impossible(rewards), -math.inf, values)


def tilted_log_weights(rewards: Tensor, log_weights: Tensor) -> Tensor:
    """Unnormalised log-weights `[N, K]` of look-aheads in the tilted posterior; arguments as of `value`.

    Where all rewards of an observation are `-inf`, which tells none of its look-aheads from another, they are those of
    the posterior.
    """
    return log_weights + torch.where(_is_impossible(rewards).unsqueeze(1), 0.0, rewards)


def _is_impossible(rewards: Tensor) -> Tensor:
    """Whether all scaled rewards of an observation are `-inf`, `[N]`."""
    return torch.isneginf(rewards).all(1)


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
    difference = torch.softmax(tilted_log_weights(rewards, log_weights), 1) - torch.softmax(log_weights, 1)
    return torch.einsum("nk,nk...->n...", difference.to(samples.dtype), samples)


def pathwise_gradient(values: Tensor, x: Tensor, keeps_graph: bool = False) -> Tensor:
    """`grad_x V`, by differentiating the value through its look-aheads and their weights.

    Args:
        values: `V` of each row, `[N]`, with a graph to `x`.
        x: observations `[N, ...]` in the bounded coordinate, requiring gradients.
        keeps_graph: whether something else is to be differentiated through the same graph afterwards.

    Returns:
        `[N, ...]`, without a graph.
    """
    (gradient,) = torch.autograd.grad(values, x, torch.ones_like(values), retain_graph=keeps_graph)
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
    pathwise: Tensor,
    tilted_mean: Tensor,
    samples: Tensor,
    rewards: Tensor,
    log_weights: Tensor,
    noise_to_signal: Level,
) -> Tensor:
    """Two estimates of one shift, each row's in the proportion of their errors.

    The tilted mean `T` is `sum_k c_k z_k` with `c = softmax(log w + r) - softmax(log w)`. Across all directions but the
    few that the reward sees, that is noise of the total variance `V = s^2 sum_k c_k^2`, with `s^2` the total variance
    of the look-aheads. It needs no derivative, and it says how far from `T` the truth is to be sought. The pathwise
    estimate `P` has an error that nothing tells beforehand (noise of the derivatives, a map or weights that are not
    exact), but `E |P - T|^2 = V + E |error of P|^2` where the two err independently. Weighing by the inverse of both
    gives `P` the weight `V / |P - T|^2`, at most 1: the James-Stein estimator that shrinks `T` towards `P` (Green and
    Strawderman, "A James-Stein type estimator for combining unbiased and possibly biased estimators", 1991).

    Larger gaps too count as noise of `T`, up to `2 V / sigma^6` with `sigma` of the bounded coordinate: of few
    look-aheads `|P - T|^2` scatters widely about its mean, and the less noise there is, the narrower is the posterior,
    the less derivatives vary over it, and the more `P` is to be trusted. (Of the powers 0, 2, 3, 4, 5 and 6 of `sigma`
    this did best.) At pure noise, where `P` says nothing, take `T` alone.

    The error, as root mean square over linear, quadratic and strong rewards with GLASS and weighted look-aheads, was
    within 10 % of that of the better of the two for 4 and 16 look-aheads, mixtures in 1, 3, 8 and 32 dimensions and
    noise-to-signal ratios from 0.1 to 3, with one exception: 20 % above it in one dimension at 0.6 with 4 look-aheads.
    With a single reward it was up to 1.8 times the better one. On a skewed law in one dimension, where `P` is
    nearly right, it was up to three times that of `P`, though below that of `T`. `docs/methods.md` has
    the table, which `tests/core/test_values.py` checks.

    Args:
        pathwise, tilted_mean: the shifts `[N, ...]`.
        samples: look-aheads `[N, K, ...]` with K at least 2.
        rewards: their scaled rewards `[N, K]`.
        log_weights: `[N, K]`.
        noise_to_signal: level of the observations.

    Returns:
        `[N, ...]`.
    """
    weights = torch.softmax(log_weights, 1)
    changes = torch.softmax(tilted_log_weights(rewards, log_weights), 1) - weights
    mean = torch.einsum("nk,nk...->n...", weights.to(samples.dtype), samples)
    squares = (samples - mean.unsqueeze(1)).flatten(2).square().sum(2)
    # Of weighted samples; one that has all the weight tells no variance.
    variance = (weights * squares).sum(1) / (1 - weights.square().sum(1)).clamp(min=1e-6)
    _, sigma = signal_and_noise(noise_to_signal)
    noise = (2 / sigma**6).to(variance) * variance * changes.square().sum(1)
    gap = (pathwise - tilted_mean).flatten(1).square().sum(1)
    share = (noise / gap.clamp(min=torch.finfo(samples.dtype).tiny)).clamp(max=1)
    return tilted_mean + expand(share, pathwise) * (pathwise - tilted_mean)
