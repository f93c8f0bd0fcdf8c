"""The Lagrangian residual, whose derivative is a central difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import toward
from ...core.tensors import expand
from . import register_loss
from .residuals import Batch, lagrangian_residual, student_denoised
from .steps import StepLoss

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@register_loss("central_difference")
@dataclass(frozen=True)
class CentralDifference(StepLoss):
    """The Lagrangian residual with `d/dr` by a central difference of width `2 * step`, one-sided at the ends.

    Args:
        step: step of the inner time; None for that of `difference_step`.
    """

    step: float | None = None

    def squared_residuals(self, diamond_map: DiamondMap, batch: Batch) -> Tensor:
        step = difference_step(diamond_map) if self.step is None else self.step
        high, low = torch.minimum(batch.r + step, batch.s), (batch.r - step).clamp(min=0)
        ends = [
            toward(batch.xbar, student_denoised(diamond_map, batch, batch.xbar, batch.s, r), batch.s, r)
            for r in (high, low)
        ]
        derivative = (ends[0] - ends[1]) / expand(high - low, batch.xbar)
        return lagrangian_residual(diamond_map, batch, torch.lerp(ends[1], ends[0], 0.5), derivative)


def difference_step(diamond_map: DiamondMap) -> float:
    """The step with about the least error of differences: 0.01 in float32, 0.03 in float16, 0.06 in bfloat16.

    Rounding by `eps` makes an error like `eps / step`, and curvature one like `step^2`, hence the cube root. Its factor
    was measured on the embedded model's map. There bfloat16 makes errors of 4 % of the derivative, and of 26 % with a
    step of 0.01.
    """
    weights = (weight for weight in diamond_map.network.parameters() if weight.is_floating_point())
    # Weights of one byte are cast before they are used.
    eps = max(torch.finfo(weight.dtype).eps for weight in weights if weight.itemsize > 1)
    return max(0.01, 0.3 * eps ** (1 / 3))
