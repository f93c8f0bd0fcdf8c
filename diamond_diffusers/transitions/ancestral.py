"""Gaussian steps around the denoised sample."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..core.interval import Interval
from ..core.levels import ode_step, signal_and_noise
from ..core.network import Network
from ..core.tensors import expand
from . import TRANSITIONS
from .base import Transition


class GaussianTransition(Transition):
    """A Gaussian step around the denoised sample, of which a part of the noise is kept and the rest is fresh::

        y' = D + kept (y - D) / kappa + fresh e,      kept^2 + fresh^2 = kappa'^2

    Subclasses say how much is fresh.
    """

    @abstractmethod
    def _fresh_noise(self, interval: Interval) -> float:
        """Standard deviation of the fresh noise in `y' = x' / alpha'`, at most `interval.end`."""

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        # It uses the prediction.
        assert predicted is not None
        fresh = self._fresh_noise(interval)
        kept = math.sqrt(max(interval.end**2 - fresh**2, 0.0))
        alpha_next, _ = signal_and_noise(interval.end)
        return expand(alpha_next, x) * fresh * noise + _with_noise_kept(
            x, predicted, interval.start, interval.end, kept
        )

    def tilt_gain(self, interval: Interval) -> float:
        fresh = self._fresh_noise(interval)
        if fresh == 0:
            return 0.0
        # y' = D + kept (y - D) / kappa + fresh eps.
        kept = math.sqrt(max(interval.end**2 - fresh**2, 0.0))
        return (1 - kept / interval.start) / fresh


@TRANSITIONS.register("ancestral")
@dataclass(frozen=True)
class AncestralTransition(GaussianTransition):
    """A Gaussian step around the denoised sample (DDIM with eta, arXiv 2010.02502); `eta=1` is DDPM.

    Args:
        eta: share in `[0, 1]` of the DDPM noise that is fresh.

    Example:
        >>> method = BestOfN(num_particles=2, transition=AncestralTransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    eta: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; give a number between 0 (deterministic) and 1 (DDPM)")

    def _fresh_noise(self, interval: Interval) -> float:
        return self.eta * interval.end * math.sqrt(1 - (interval.end / interval.start) ** 2)


def _with_noise_kept(x: Tensor, predicted: Tensor, kappa: float, kappa_next: float, kept: float) -> Tensor:
    """`alpha' (D + kept eps)`, where `eps` is the noise that the predicted sample leaves in `x`."""
    alpha_next, _ = signal_and_noise(kappa_next)
    at_kept = ode_step(x, predicted, kappa, kept)
    alpha_kept, _ = signal_and_noise(kept)
    return at_kept * expand(alpha_next / alpha_kept, x)
