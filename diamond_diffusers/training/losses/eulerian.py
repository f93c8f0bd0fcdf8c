"""The teacher leads the first part of a step, and the map the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import toward
from . import register_loss
from .residuals import SMALLEST_TIME, Batch, between, joined_residual, student_denoised, teacher_denoised
from .steps import StepLoss

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@register_loss("eulerian")
@dataclass(frozen=True)
class Eulerian(StepLoss):
    """The residual `| D_{s -> r} - D_{s -> m -> r} |^2`, where the teacher leads to `m` and the map from there to `r`.

    Args:
        step: share of the way to `r` for which the teacher leads, by Heun's method.
    """

    step: float = 0.5

    def squared_residuals(self, diamond_map: DiamondMap, batch: Batch) -> Tensor:
        middle = torch.minimum(between(batch, self.step).clamp(min=SMALLEST_TIME), batch.s)
        with torch.no_grad():
            start = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
            end = teacher_denoised(diamond_map, batch, toward(batch.xbar, start, batch.s, middle), middle)
            first = (start + end) / 2
            halfway = toward(batch.xbar, first, batch.s, middle)
            second = student_denoised(diamond_map, batch, halfway, middle, batch.r)
        return joined_residual(diamond_map, batch, middle, first, second)
