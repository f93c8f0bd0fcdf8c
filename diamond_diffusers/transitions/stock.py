"""The step of a stock scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..core.interval import Interval
from ..core.levels import signal_and_noise
from ..core.network import Network
from ..core.tensors import expand
from . import TRANSITIONS
from .base import Transition


@TRANSITIONS.register("stock")
@dataclass(frozen=True)
class StockTransition(Transition):
    """The step of a stock scheduler, with the noise that it draws and the clipping that it does.

    Args:
        transition: the step itself.
        draws_above: level above which a step draws noise, whether it uses the noise or not, so that the generators of a
            call end in the same state as after the stock pipeline. None to draw only noise that is used.
        clip: function that clips predicted clean samples `[N, ...]`; None to take them as they are.
        keeps_noise: whether the noise stays that of the unclipped sample, as in DDIM.
    """

    transition: Transition
    draws_above: float | None = None
    clip: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    keeps_noise: bool = False

    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        # It uses the prediction.
        assert predicted is not None
        clipped = predicted if self.clip is None else self.clip(predicted)
        if not self.keeps_noise:
            return self.transition.step(network, x, interval, clipped, noise)
        alpha, _ = signal_and_noise(interval.end)
        return self.transition.step(network, x, interval, predicted, noise) + expand(alpha, x) * (clipped - predicted)

    def tilt_gain(self, interval: Interval) -> float:
        return self.transition.tilt_gain(interval)

    def is_random(self, interval: Interval) -> bool:
        return self.transition.is_random(interval)

    def draws_noise(self, interval: Interval) -> bool:
        if self.draws_above is None:
            return self.transition.draws_noise(interval)
        return interval.start > self.draws_above
