"""Transitions that stop an inner flow early."""

from __future__ import annotations

import math

from ..core.glass import EarlyStop
from ..core.interval import Interval
from ..core.wording import shown
from .base import Transition


class InnerFlowTransition(Transition):
    """A step by an inner flow that is stopped early.

    Attributes:
        correlation: correlation `rho` in `[0, 1]` between the noises before and after the step; `"ddpm"` is
            `kappa_next / kappa`, for which the chain is Markov.
    """

    correlation: float | str

    def __post_init__(self) -> None:
        check_correlation(self.correlation)

    def tilt_gain(self, interval: Interval) -> float:
        correlation = interval.correlation(self.correlation)
        if EarlyStop(interval, correlation).stays:
            return 0.0
        fresh = interval.end * math.sqrt(1 - correlation**2)
        if fresh == 0:
            # The inner flow runs through: its noise spans the whole posterior, whose deviation is about
            # kappa / sqrt(1 + kappa^2) for data of unit variance.
            return math.sqrt(1 + interval.start**-2)
        return (1 - correlation * interval.end / interval.start) / fresh


def check_correlation(correlation: float | str) -> None:
    """Raises a `ValueError` for what is neither "ddpm" nor a number in `[0, 1]`."""
    if correlation != "ddpm" and (isinstance(correlation, str) or not 0 <= correlation <= 1):
        raise ValueError(f"correlation is {shown(correlation)}; give 'ddpm' or a number between 0 and 1")
