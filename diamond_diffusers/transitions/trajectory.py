"""Strategic stochastic sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.interval import Interval
from ..core.levels import as_level, interpolate_timesteps
from . import TRANSITIONS
from .ancestral import AncestralTransition


@TRANSITIONS.register("trajectory")
@dataclass(frozen=True)
class TrajectoryTransition(AncestralTransition):
    """Strategic stochastic sampling of trajectory consistency models (TCD, arXiv 2402.19159).

    A step follows the trajectory past the next level, to the training step `(1 - eta)` times that of the next level,
    and renoises from there.

    Args:
        eta: the paper's gamma, in `[0, 1]`.
        table: noise-to-signal ratio of each training step.
    """

    eta: float = 0.0
    table: Tensor = field(kw_only=True, repr=False, compare=False)

    def _fresh_noise(self, interval: Interval) -> float:
        step = interpolate_timesteps(as_level(interval.end), self.table).round().long()
        kept = self.table[torch.floor((1 - self.eta) * step).long()].item()
        return math.sqrt(max(interval.end**2 - kept**2, 0.0))
