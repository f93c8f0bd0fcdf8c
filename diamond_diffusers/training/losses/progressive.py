"""Two short steps of the map teach it a long one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import toward
from . import register_loss
from .residuals import Batch, between, joined_residual, student_denoised
from .steps import StepLoss

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@register_loss("progressive")
class Progressive(StepLoss):
    """The residual `| D_{s -> r} - D_{s -> m -> r} |^2` with `m` half-way: two steps of the map teach it a long one."""

    def squared_residuals(self, diamond_map: DiamondMap, batch: Batch) -> Tensor:
        middle = between(batch, 0.5)
        with torch.no_grad():
            first = student_denoised(diamond_map, batch, batch.xbar, batch.s, middle)
            halfway = toward(batch.xbar, first, batch.s, middle)
            second = student_denoised(diamond_map, batch, halfway, middle, batch.r)
        return joined_residual(diamond_map, batch, middle, first, second)
