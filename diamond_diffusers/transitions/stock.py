"""The step of a stock scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..core.levels import signal_and_noise
from ..core.network import Network
from ..core.tensors import expand
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("stock")
@dataclass(frozen=True)
class StockTransition(Transition):
    """The step of a stock scheduler, and what that does beside.

    Args:
        transition: the step itself.
        draws_above: noise is drawn for steps that leave a level above it, be it used or not, so that the generators of
            a call are left as the stock pipeline leaves them; None to draw what is used.
        clip: of predicted clean samples `[N, ...]`; None to take them as they are.
        keeps_noise: whether the noise stays that of the unclipped sample, as in DDIM.
    """

    transition: Transition
    draws_above: float | None = None
    clip: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    keeps_noise: bool = False

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor,
        noise: Tensor,
    ) -> Tensor:
        levels = (noise_to_signal, next_noise_to_signal)
        clipped = predicted if self.clip is None else self.clip(predicted)
        if not self.keeps_noise:
            return self.transition.step(network, x, *levels, clipped, noise)
        alpha, _ = signal_and_noise(next_noise_to_signal)
        return self.transition.step(network, x, *levels, predicted, noise) + expand(alpha, x) * (clipped - predicted)

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        return self.transition.tilt_gain(noise_to_signal, next_noise_to_signal)

    def draws_noise(self, noise_to_signal: float, next_noise_to_signal: float) -> bool:
        if self.draws_above is None:
            return self.transition.draws_noise(noise_to_signal, next_noise_to_signal)
        return noise_to_signal > self.draws_above
