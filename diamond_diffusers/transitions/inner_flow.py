"""Transitions that stop an inner flow early."""

from __future__ import annotations

import math

from ..core.glass import EarlyStop
from .base import Transition


class InnerFlowTransition(Transition):
    """An inner flow that is stopped early.

    Attributes:
        correlation: `rho` in `[0, 1]` between the noises before and after; `"ddpm"` is `kappa_next / kappa`, for
            which the chain is Markov.
    """

    correlation: float | str

    def __post_init__(self) -> None:
        if self.correlation != "ddpm" and not (
            isinstance(self.correlation, int | float) and 0 <= self.correlation <= 1
        ):
            raise ValueError(f"correlation is {self.correlation!r}; give 'ddpm' or a number between 0 and 1")

    def correlation_at(self, kappa: float, kappa_next: float) -> float:
        """`rho` of a step between two levels."""
        if self.correlation != "ddpm":
            return float(self.correlation)
        # At pure noise too, where the ratio says nothing.
        return 1.0 if kappa_next == kappa else kappa_next / kappa

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        correlation = self.correlation_at(noise_to_signal, next_noise_to_signal)
        if EarlyStop(noise_to_signal, next_noise_to_signal, correlation).stays:
            return 0.0
        fresh = next_noise_to_signal * math.sqrt(1 - correlation**2)
        if fresh == 0:
            # The inner flow runs through: its noise spans the whole posterior, whose deviation is about
            # kappa / sqrt(1 + kappa^2) for data of unit variance.
            return math.sqrt(1 + noise_to_signal**-2)
        return (1 - correlation * next_noise_to_signal / noise_to_signal) / fresh
