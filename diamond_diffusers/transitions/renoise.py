"""Steps that noise the predicted sample afresh."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.interval import Interval
from ..core.levels import add_noise
from ..core.network import Network
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("renoise")
@dataclass(frozen=True)
class RenoiseTransition(Transition):
    """A step that takes the predicted sample as clean and noises it afresh, as consistency models and SCM sample.

    Example:
        >>> method = BestOfN(num_particles=2, transition=RenoiseTransition())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        # It uses the prediction.
        assert predicted is not None
        return add_noise(predicted, noise, interval.end)

    def tilt_gain(self, interval: Interval) -> float:
        return 0.0 if interval.end == 0 else 1 / interval.end
