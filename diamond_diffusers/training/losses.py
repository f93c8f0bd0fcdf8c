"""Losses that distil a Posterior Diamond Map from the GLASS flow of its own base (arXiv 2602.05993, section 4).

The teacher's inner velocity is `u(xbar, s) = (xbar - D_teacher(S, kappa*)) / s`, with the base's guidance folded in.
Every residual below is multiplied by its inner time, so that it is in units of the clean sample at every time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbones.base import Conditions
from ..glass import query
from ..levels import add_noise, expand
from ..models.diamond_map import DiamondMap, toward

SMALLEST_TIME = 0.01
"""At which the teacher is asked for inner times below it."""


@dataclass(frozen=True)
class Batch:
    """Rows to distil on.

    Attributes:
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their levels, `[N]` float64.
        xbar: inner states `[N, ...]`, `(1 - s) z + s eps`.
        s: their inner times in (0, 1], `[N]` float64.
        r: inner times to map to, `0 <= r <= s`, `[N]` float64.
        conditions: of the rows; negative prompts and guidance scale are the teacher's.
    """

    x: Tensor
    noise_to_signal: Tensor
    xbar: Tensor
    s: Tensor
    r: Tensor
    conditions: Conditions

    @classmethod
    def draw(cls, z: Tensor, noise_to_signal: Tensor, s: Tensor, r: Tensor, conditions: Conditions) -> Batch:
        """Observes clean samples `z [N, ...]` twice: at the outer level and along the inner path."""
        x = add_noise(z, torch.randn_like(z), noise_to_signal)
        inner = expand(s, z)
        return cls(x, noise_to_signal, (1 - inner) * z + inner * torch.randn_like(z), s, r, conditions)


Loss = Callable[[DiamondMap, Batch], Tensor]
"""Squared residuals `[N]`, averaged over each row's elements."""


@torch.no_grad()
def teacher_denoised(diamond_map: DiamondMap, batch: Batch, xbar: Tensor, s: Tensor) -> Tensor:
    """`D_teacher` at inner states `xbar [N, ...]` of times `s [N]`."""
    statistic, level = query(batch.x, batch.noise_to_signal, xbar, s)
    return diamond_map.backbone.predict(statistic, level, batch.conditions)


def student_denoised(diamond_map: DiamondMap, batch: Batch, xbar: Tensor, s: Tensor, r: Tensor) -> Tensor:
    return diamond_map.mean_denoiser(xbar, s, r, batch.x, batch.noise_to_signal, batch.conditions)


def diagonal(diamond_map: DiamondMap, batch: Batch) -> Tensor:
    """`s^2 | phi(xbar_s, s, s) - u(xbar_s, s) |^2`: the map's own velocity is the teacher's."""
    taught = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
    return _squared(student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.s) - taught)


def lagrangian(diamond_map: DiamondMap, batch: Batch) -> Tensor:
    """`r^2 | d/dr X_{s -> r} - u(X_{s -> r}, r) |^2`, the derivative by forward-mode differentiation.

    Attention needs a kernel with a forward-mode rule: call it inside `sdpa_kernel(SDPBackend.MATH)`.
    """

    def mapped_to(r: Tensor) -> Tensor:
        return toward(batch.xbar, student_denoised(diamond_map, batch, batch.xbar, batch.s, r), batch.s, r)

    # Not autograd's forward_ad: there the rule of softmax works in place and has no backward pass.
    mapped, derivative = torch.func.jvp(mapped_to, (batch.r,), (torch.ones_like(batch.r),))
    return _lagrangian_residual(diamond_map, batch, mapped, derivative)


def central_difference(diamond_map: DiamondMap, batch: Batch, step: float = 0.01) -> Tensor:
    """The Lagrangian residual with `d/dr` by a central difference of width `2 * step`, one-sided at the ends."""
    high, low = torch.minimum(batch.r + step, batch.s), (batch.r - step).clamp(min=0)
    ends = [
        toward(batch.xbar, student_denoised(diamond_map, batch, batch.xbar, batch.s, r), batch.s, r)
        for r in (high, low)
    ]
    derivative = (ends[0] - ends[1]) / expand(high - low, batch.xbar)
    return _lagrangian_residual(diamond_map, batch, torch.lerp(ends[1], ends[0], 0.5), derivative)


def _lagrangian_residual(diamond_map: DiamondMap, batch: Batch, mapped: Tensor, derivative: Tensor) -> Tensor:
    target = mapped.detach()
    asked = batch.r.clamp(min=SMALLEST_TIME)
    velocity = (target - teacher_denoised(diamond_map, batch, target, asked)) / expand(asked, target)
    return _squared(expand(batch.r, target) * (derivative - velocity))


def progressive(diamond_map: DiamondMap, batch: Batch) -> Tensor:
    """`| X_{s -> r} - X_{m -> r}(X_{s -> m}) |^2` with `m` half-way: two short steps teach a long one."""
    middle = (batch.s + batch.r) / 2
    with torch.no_grad():
        halfway = student_denoised(diamond_map, batch, batch.xbar, batch.s, middle)
        halfway = toward(batch.xbar, halfway, batch.s, middle)
        target = toward(halfway, student_denoised(diamond_map, batch, halfway, middle, batch.r), middle, batch.r)
    denoised = student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.r)
    return _squared(toward(batch.xbar, denoised, batch.s, batch.r) - target)


def eulerian(diamond_map: DiamondMap, batch: Batch, step: float = 0.05) -> Tensor:
    """`| X_{s -> r}(xbar_s) - X_{s' -> r}(xbar_s') |^2` with `xbar_s'` one short teacher step below `xbar_s`."""
    below = torch.maximum(batch.s - step, batch.r).clamp(min=SMALLEST_TIME)
    below = torch.minimum(below, batch.s)
    with torch.no_grad():
        taught = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
        moved = toward(batch.xbar, taught, batch.s, below)
        target = toward(moved, student_denoised(diamond_map, batch, moved, below, batch.r), below, batch.r)
    denoised = student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.r)
    return _squared(toward(batch.xbar, denoised, batch.s, batch.r) - target)


LOSSES: dict[str, Loss] = {
    "lagrangian": lagrangian,
    "central_difference": central_difference,
    "progressive": progressive,
    "eulerian": eulerian,
}
"""Off-diagonal losses by name."""


def draw_inner_times(count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Inner times `(s, r)` of the off-diagonal loss, `[count]` float64, `0 <= r < s <= 1`.

    On half of the rows `s` is 1, where the map is used.
    """
    s = SMALLEST_TIME + (1 - SMALLEST_TIME) * torch.rand(count, generator=generator, dtype=torch.float64)
    s[: count // 2] = 1.0
    return s, s * torch.rand(count, generator=generator, dtype=torch.float64)


def _squared(residual: Tensor) -> Tensor:
    return residual.float().square().flatten(1).mean(1)
