"""The ancestral step that DAS tilts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.levels import signal_and_noise
from . import TRANSITIONS
from .ancestral import AncestralTransition


@TRANSITIONS.register("das")
@dataclass(frozen=True)
class DASTransition(AncestralTransition):
    """The ancestral step, whose noise DAS tilts by the gradient at the present state in place of that at the next.

    In the coordinate `x = y / sqrt(1 + kappa^2)` of variance-preserving models the mean of the step moves by its
    variance times `grad_x V`, `(alpha' / alpha) (kappa' / kappa)^2` times what the shift of the denoised sample would
    move it by; equal as steps shrink.
    """

    def tilt_gain(self, noise_to_signal: float, next_noise_to_signal: float) -> float:
        if math.isinf(noise_to_signal):
            return 0.0
        (alpha, _), (next_alpha, _) = signal_and_noise(noise_to_signal), signal_and_noise(next_noise_to_signal)
        fresh = self._fresh_noise(noise_to_signal, next_noise_to_signal)
        return float(next_alpha / alpha) * fresh / noise_to_signal**2
