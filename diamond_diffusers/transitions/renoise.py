"""Noise anew what the model predicts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.levels import add_noise
from ..core.network import Network
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("renoise")
@dataclass(frozen=True)
class RenoiseTransition(Transition):
    """Takes the predicted sample as clean and noises it afresh: how consistency models and SCM sample."""

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor,
        noise: Tensor,
    ) -> Tensor:
        return add_noise(predicted, noise, next_noise_to_signal)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        return 0.0 if next_noise_to_signal == 0 else 1 / next_noise_to_signal
