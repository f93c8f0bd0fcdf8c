"""The ancestral step that DAS tilts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.interval import Interval
from ..core.levels import signal_and_noise
from . import TRANSITIONS
from .ancestral import AncestralTransition


@TRANSITIONS.register("das")
@dataclass(frozen=True)
class DASTransition(AncestralTransition):
    """The ancestral step of DAS, whose noise is tilted by the gradient at the present state instead of the next one.

    In the coordinate `x = y / sqrt(1 + kappa^2)` of variance-preserving models, the mean of the step moves by its
    variance times `grad_x V`. That is `(alpha' / alpha) (kappa' / kappa)^2` times the effect of shifting the denoised
    sample; the two are equal as steps shrink.
    """

    def tilt_gain(self, interval: Interval) -> float:
        if math.isinf(interval.start):
            return 0.0
        (alpha, _), (next_alpha, _) = signal_and_noise(interval.start), signal_and_noise(interval.end)
        fresh = self._fresh_noise(interval)
        return float(next_alpha / alpha) * fresh / interval.start**2

    def is_random(self, interval: Interval) -> bool:
        # From pure noise too, where there is no gradient to tilt by.
        return self._fresh_noise(interval) > 0
