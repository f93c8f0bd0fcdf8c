"""Batches for losses of inner times, and the parts of their residuals (arXiv 2602.05993, section 4).

A Posterior Diamond Map is distilled from the GLASS flow of its own base. The teacher's inner velocity is
`u(xbar, s) = (xbar - D_teacher(S, kappa*)) / s`, with the base's guidance folded in. Every residual below is multiplied
by its inner time, so that it is in units of the clean sample at every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import inner_angle, inner_time, query
from ...core.levels import add_noise
from ...core.model import Conditions
from ...core.tensors import expand

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap

SMALLEST_TIME = 0.01
"""At which the teacher is asked for inner times below it."""


@dataclass(frozen=True)
class Batch:
    """The rows of a batch that learn inner steps or velocities.

    Attributes:
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their levels, `[N]` float64.
        xbar: inner states `[N, ...]`, `(1 - s) z + s eps`.
        s: their inner times in (0, 1], `[N]` float64.
        r: inner times to map to, `0 <= r <= s`, `[N]` float64.
        conditions: conditions of the rows; negative prompts and guidance scale are the teacher's.
    """

    x: Tensor
    noise_to_signal: Tensor
    xbar: Tensor
    s: Tensor
    r: Tensor
    conditions: Conditions

    @classmethod
    def draw(cls, z: Tensor, noise_to_signal: Tensor, s: Tensor, r: Tensor, conditions: Conditions) -> Batch:
        """Noises clean samples `z [N, ...]` twice: to the outer level, and to the inner time."""
        x = add_noise(z, torch.randn_like(z), noise_to_signal)
        inner = expand(s, z)
        return cls(x, noise_to_signal, (1 - inner) * z + inner * torch.randn_like(z), s, r, conditions)


@torch.no_grad()
def teacher_denoised(diamond_map: DiamondMap, batch: Batch, xbar: Tensor, s: Tensor) -> Tensor:
    """`D_teacher` at inner states `xbar [N, ...]` of times `s [N]`."""
    statistic, level = query(batch.x, batch.noise_to_signal, xbar, s)
    return diamond_map.family.predict(statistic, level, batch.conditions)


def student_denoised(diamond_map: DiamondMap, batch: Batch, xbar: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """`D` of the map from inner states `xbar [N, ...]` of times `s [N]` to times `r [N]`."""
    return diamond_map.mean_denoiser(xbar, s, r, batch.x, batch.noise_to_signal, batch.conditions)


def diagonal(diamond_map: DiamondMap, batch: Batch) -> Tensor:
    """`s^2 | phi(xbar_s, s, s) - u(xbar_s, s) |^2`: the map's own velocity is the teacher's."""
    taught = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
    return squared(student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.s) - taught)


def lagrangian_residual(diamond_map: DiamondMap, batch: Batch, mapped: Tensor, derivative: Tensor) -> Tensor:
    """`r^2 | d/dr X - u(X, r) |^2`, `[N]`, of `X = X_{s -> r}` and its derivative by `r`, both `[N, ...]`."""
    target = mapped.detach()
    asked = batch.r.clamp(min=SMALLEST_TIME)
    velocity = (target - teacher_denoised(diamond_map, batch, target, asked)) / expand(asked, target)
    return squared(expand(batch.r, target) * (derivative - velocity))


def joined_residual(diamond_map: DiamondMap, batch: Batch, middle: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`| D_{s -> r} - D |^2`, where `D` leads from `xbar_s` to `r` as `first` (up to `middle`) and then `second` do."""
    s, r = batch.s, batch.r
    # (1 - r/s) D = (r/m) (1 - m/s) D_1 + (1 - r/m) D_2.
    share = r * (s - middle) / (middle * (s - r)).clamp(min=1e-12)
    target = torch.lerp(second, first, expand(share, first).to(first.dtype))
    return squared(student_denoised(diamond_map, batch, batch.xbar, s, r) - target)


def between(batch: Batch, share: float) -> Tensor:
    """The inner time after a share of the way from `s` to `r`."""
    level = batch.noise_to_signal
    return inner_time(torch.lerp(inner_angle(batch.s, level), inner_angle(batch.r, level), share), level)


def squared(residual: Tensor) -> Tensor:
    """Squares of residuals `[N, ...]`, averaged over each row's elements: `[N]`."""
    return residual.float().square().flatten(1).mean(1)
