"""How large guidance makes its shift of the denoised samples.

In terms of a network that predicts the velocity of rectified flow, `t = kappa / (1 + kappa)`, guidance subtracts
`b grad_x V` with the coefficient `b = t / (1 - t) = kappa`, which grows without bound towards pure noise. A shift `d`
of the denoised sample changes that velocity by `-d / t`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.registry import Registry
from ..core.tensors import expand
from .look_ahead import LookAhead

SANA_SPRINT_DEVIATION = 0.5
"""`sigma_data` of SANA-Sprint: its latents are scaled by it."""

NO_GRADIENT = "a guide asks for the gradient before it scales it"

ShiftOfGradient = Callable[[LookAhead, float, float], Tensor]
"""Maps estimates of `N` particles, their level and the largest coefficient to the shift at strength 1, `[N, ...]`."""


@dataclass(frozen=True)
class Scaling:
    """How large a guide makes its shift.

    Attributes:
        shift: of estimates of particles.
        takes_terms: whether it scales the terms of the gradient each for itself, where the look-aheads have terms.
        takes_drift: whether it uses the size of the velocity.
        has_coefficient: whether it multiplies by a coefficient, which `max_coefficient` can limit.
    """

    shift: ShiftOfGradient
    takes_terms: bool = False
    takes_drift: bool = False
    has_coefficient: bool = True


SCALINGS: Registry[Scaling] = Registry("scaling", "scalings")


def scaling(
    name: str, *, takes_terms: bool = False, takes_drift: bool = False, has_coefficient: bool = True
) -> Callable[[ShiftOfGradient], ShiftOfGradient]:
    """Registers the decorated function as the scaling of that name; arguments as of `Scaling`."""

    def register(shift: ShiftOfGradient) -> ShiftOfGradient:
        SCALINGS.register(name)(Scaling(shift, takes_terms, takes_drift, has_coefficient))
        return shift

    return register


@scaling("exact")
def exact(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """`kappa^2 grad_y V`, for which the tilted law is sampled."""
    shift = ahead.shift
    assert shift is not None, NO_GRADIENT
    return shift if noise_to_signal <= max_coefficient else max_coefficient / noise_to_signal * shift


@scaling("norm", takes_terms=True)
def norm(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """Each term of the gradient at root-mean-square 1, then the coefficient: the recipe of the Weighted Diamond Map.

    Its authors' code has norms in place of root-mean-squares, so that its factor is `strength` times the
    square root of the number of latents. At pure noise the shift is zero unless the coefficient is limited.
    """
    assert ahead.terms is not None, NO_GRADIENT
    coefficient = min(noise_to_signal, max_coefficient)
    if math.isinf(coefficient):
        return torch.zeros_like(ahead.terms[:, 0])
    time = 1 / (1 + 1 / noise_to_signal)
    return time * coefficient * _sum_of_units(ahead.terms)


@scaling("sana_sprint_norm", takes_terms=True)
def sana_sprint_norm(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """As `norm`, with the coefficient of the authors' code for SANA-Sprint, which is negative below `kappa = 1`.

    On the path `x_s = cos s z + sin s sigma_d eps` of that model's scaled latents, `kappa = tan s`, guidance subtracts
    `b grad_x V` from `dx / ds`. There `b = sigma_d^2 (sin^3 s / cos s + sin s cos s) = sigma_d^2 tan s`; theirs has a
    minus, which makes it `-sigma_d^2 tan s cos 2 s`. A change `-c` of `dx / ds` moves the denoised sample by `c sin s`.
    """
    assert ahead.terms is not None, NO_GRADIENT
    angle = math.atan(noise_to_signal)
    coefficient = -(SANA_SPRINT_DEVIATION**2) * noise_to_signal * math.cos(2 * angle)
    coefficient = min(coefficient, max_coefficient)
    if math.isinf(coefficient):
        return torch.zeros_like(ahead.terms[:, 0])
    return math.sin(angle) * coefficient / SANA_SPRINT_DEVIATION * _sum_of_units(ahead.terms)


@scaling("auto", takes_drift=True, has_coefficient=False)
def auto(ahead: LookAhead, noise_to_signal: float, max_coefficient: float) -> Tensor:
    """The change of the velocity gets the size of the velocity (FMRG, arXiv 2604.27147)."""
    assert ahead.terms is not None and ahead.drift is not None, NO_GRADIENT
    total = ahead.terms.sum(1)
    return expand(ahead.drift, total) * of_unit_size(total)


def _sum_of_units(terms: Tensor) -> Tensor:
    """The sum `[N, ...]` of terms `[N, T, ...]`, each brought to root-mean-square 1; terms of zeros stay."""
    return of_unit_size(terms.flatten(0, 1)).unflatten(0, terms.shape[:2]).sum(1)


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
