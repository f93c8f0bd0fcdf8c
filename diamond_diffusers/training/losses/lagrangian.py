"""The Lagrangian residual, whose derivative is taken in forward mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import toward
from . import register_loss
from .forward_mode import tangents_like_outputs
from .residuals import Batch, lagrangian_residual, student_denoised
from .steps import StepLoss

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@register_loss("lagrangian")
class Lagrangian(StepLoss):
    """The residual `r^2 | d/dr X_{s -> r} - u(X_{s -> r}, r) |^2`, with the derivative taken in forward mode.

    Attention needs a kernel with a forward-mode rule: `squared_residuals` is called inside
    `sdpa_kernel(SDPBackend.MATH)`.
    """

    needs_forward_mode = True

    def squared_residuals(self, diamond_map: DiamondMap, batch: Batch) -> Tensor:
        def mapped_to(r: Tensor) -> Tensor:
            return toward(batch.xbar, student_denoised(diamond_map, batch, batch.xbar, batch.s, r), batch.s, r)

        # Not autograd's forward_ad: there the rule of softmax works in place and has no backward pass.
        with tangents_like_outputs(diamond_map.network):
            mapped, derivative = torch.func.jvp(mapped_to, (batch.r,), (torch.ones_like(batch.r),))  # type: ignore[misc]
        return lagrangian_residual(diamond_map, batch, mapped, derivative)
