"""The stochastic sampling that rollover budget forcing searches along."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ..core.interval import Interval
from . import TRANSITIONS
from .ancestral import GaussianTransition

BETA_MIN, BETA_MAX = 0.1, 20.0
"""Of the variance-preserving path whose time measures the diffusion: `beta(r)` rises from the one to the other."""


@TRANSITIONS.register("vp_sde")
@dataclass(frozen=True)
class VPSDETransition(GaussianTransition):
    """A step of the SDE of rollover budget forcing (arXiv 2503.19385), whatever path the model was trained on.

    Its authors convert a flow model's linear path to the variance-preserving one, whose time `r` in [0, 1] has

        log(1 + kappa^2) = beta_min r + (beta_max - beta_min) r^2 / 2,      beta_min = 0.1,  beta_max = 20

    and add noise of the diffusion `g(r) = diffusion r^2` there, with as much drift along the score as keeps the law of
    each level. The conversion rescales states by a factor of the level, and all particles of this package are in the
    variance-preserving coordinate already, so that what is left of it is the amount of noise. For the predicted sample
    of its start a step is exact, however long it is::

        y' = D + kappa' (rho eps + sqrt(1 - rho^2) fresh),      log rho = - 1/2 int_r'^r (g / sigma)^2 dr

    where `eps` is the noise that the predicted sample leaves in the state. Most of the noise is added where little of
    the image is settled: `rho` from pure noise to `kappa` = 13, 6, 2.4 and 0 is .48, .44, .41 and .40 in all, where
    that of DDPM falls to 0. Levels above that of `r = 1`, `kappa` = 152, count as that one.

    Args:
        diffusion: factor of the diffusion, above 0.

    Example:
        >>> method = BestOfN(num_particles=2, transition=VPSDETransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    diffusion: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.diffusion < math.inf:
            raise ValueError(f"diffusion is {self.diffusion}; give a positive number, or take ODETransition()")

    def _fresh_noise(self, interval: Interval) -> float:
        exponent = self.diffusion**2 * (_mixing(interval.start) - _mixing(interval.end))
        # 1 - rho^2, precise where it is small.
        return interval.end * math.sqrt(-math.expm1(-exponent))


def _time(noise_to_signal: float) -> float:
    """The time `r` of the variance-preserving path at a level, at most 1."""
    if math.isinf(noise_to_signal):
        return 1.0
    log_variance, rise = math.log1p(noise_to_signal**2), BETA_MAX - BETA_MIN
    # The root of a quadratic, in the form that does not cancel near 0.
    return min(1.0, 2 * log_variance / (BETA_MIN + math.sqrt(BETA_MIN**2 + 2 * rise * log_variance)))


@lru_cache(maxsize=1024)
def _mixing(noise_to_signal: float) -> float:
    """`int_0^r s^4 / sigma(s)^2 ds` up to the time of a level, by Simpson's rule."""
    if noise_to_signal == 0:
        return 0.0
    pieces, end, total = 256, _time(noise_to_signal), 0.0
    for index in range(1, pieces + 1):
        # At 0 the integrand is 0.
        time = end * index / pieces
        log_variance = BETA_MIN * time + (BETA_MAX - BETA_MIN) * time**2 / 2
        weight = 1 if index == pieces else 4 if index % 2 else 2
        total += weight * time**4 / -math.expm1(-log_variance)
    return total * end / (3 * pieces)
