"""How large guidance makes its shift of the denoised samples.

In terms of a network that predicts the velocity of rectified flow, `t = kappa / (1 + kappa)`, guidance subtracts
`b grad_x V` with the coefficient `b = t / (1 - t) = kappa`, which grows without bound towards pure noise. A shift `d`
of the denoised sample changes that velocity by `-d / t`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..levels import expand
from .look_ahead import LookAhead

Scaling = Callable[[LookAhead, float, float], Tensor]
"""Maps estimates of `N` particles, their level and the largest coefficient to the shift at strength 1, `[N, ...]`."""


def exact(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """`kappa^2 grad_y V`, for which the tilted law is sampled."""
    if noise_to_signal <= max_coefficient:
        return ahead.shift
    return max_coefficient / noise_to_signal * ahead.shift


def norm(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """Each term of the gradient at root-mean-square 1, then the coefficient: the recipe of the authors' code.

    Theirs has the likelihood and the density ratio of the weights as two terms, which are one here, and norms in place
    of root-mean-squares, so that its factor grows with the size of the latents: it is `guidance_strength` times the
    square root of their number. At pure noise the shift is zero unless the coefficient is limited.
    """
    coefficient = min(noise_to_signal, max_coefficient)
    if math.isinf(coefficient):
        return torch.zeros_like(ahead.terms[:, 0])
    time = 1 / (1 + 1 / noise_to_signal)
    return time * coefficient * of_unit_size(ahead.terms.flatten(0, 1)).unflatten(0, ahead.terms.shape[:2]).sum(1)


def auto(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """The change of the velocity gets the size of the velocity (FMRG, arXiv 2604.27147)."""
    total = ahead.terms.sum(1)
    return expand(ahead.drift, total) * of_unit_size(total)


SCALINGS: dict[str, Scaling] = {"exact": exact, "norm": norm, "auto": auto}


def of_unit_size(x: Tensor) -> Tensor:
    """Rows `[N, ...]` brought to root-mean-square 1; rows of zeros stay."""
    size = root_mean_square(x).clamp(min=torch.finfo(x.dtype).tiny)
    return x / expand(size, x)


def limited(x: Tensor, sizes: Tensor, limit: Tensor | float) -> Tensor:
    """Rows `[N, ...]` of these sizes `[N]`, which are brought down to the limit where they exceed it."""
    return x * expand(limiting_factor(sizes, limit).to(x), x)


def limiting_factor(sizes: Tensor, limit: Tensor | float) -> Tensor:
    """What brings sizes `[N]` down to the limit where they exceed it, `[N]`; at most 1."""
    return (limit / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(max=1)


def root_mean_square(x: Tensor) -> Tensor:
    """Of each row of `[N, ...]`."""
    return x.flatten(1).square().mean(1).sqrt()
