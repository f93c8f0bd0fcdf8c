"""Steps of the probability-flow ODE."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.interval import Interval
from ..core.levels import ode_step
from ..core.network import Network
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("ode")
@dataclass(frozen=True)
class ODETransition(Transition):
    """A noiseless Euler step of the probability-flow ODE: DDIM, or the Euler step of rectified flow.

    Example:
        >>> method = BestOfN(num_particles=2, transition=ODETransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        # It uses the prediction.
        assert predicted is not None
        return ode_step(x, predicted, interval.start, interval.end)

    def tilt_gain(self, interval: Interval) -> float:
        return 0.0
