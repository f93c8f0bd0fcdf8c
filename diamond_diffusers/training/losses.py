"""Losses that distil a Posterior Diamond Map from the GLASS flow of its own base (arXiv 2602.05993, section 4).

The teacher's inner velocity is `u(xbar, s) = (xbar - D_teacher(S, kappa*)) / s`, with the base's guidance folded in.
Every residual below is multiplied by its inner time, so that it is in units of the clean sample at every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.glass import inner_angle, inner_time, query, toward
from ..core.levels import add_noise
from ..core.model import Conditions
from ..core.tensors import expand
from ..maps.diamond_map import DiamondMap
from .forward_mode import tangents_like_outputs

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
    return diamond_map.family.predict(statistic, level, batch.conditions)


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
    with tangents_like_outputs(diamond_map.network):
        mapped, derivative = torch.func.jvp(mapped_to, (batch.r,), (torch.ones_like(batch.r),))
    return _lagrangian_residual(diamond_map, batch, mapped, derivative)


def central_difference(diamond_map: DiamondMap, batch: Batch, step: float | None = None) -> Tensor:
    """The Lagrangian residual with `d/dr` by a central difference of width `2 * step`, one-sided at the ends.

    The step is that of `difference_step` where it is not given.
    """
    step = difference_step(diamond_map) if step is None else step
    high, low = torch.minimum(batch.r + step, batch.s), (batch.r - step).clamp(min=0)
    ends = [
        toward(batch.xbar, student_denoised(diamond_map, batch, batch.xbar, batch.s, r), batch.s, r)
        for r in (high, low)
    ]
    derivative = (ends[0] - ends[1]) / expand(high - low, batch.xbar)
    return _lagrangian_residual(diamond_map, batch, torch.lerp(ends[1], ends[0], 0.5), derivative)


def difference_step(diamond_map: DiamondMap) -> float:
    """The step at which the error of differences is about least: 0.01 in float32, 0.03 in float16, 0.06 in bfloat16.

    Rounding by `eps` counts as `eps / step` and curvature as `step^2`, hence the cube root; its factor is measured, on
    the embedded model's map, where bfloat16 makes errors of 4 % of the derivative, and of 26 % at 0.01.
    """
    parameters = diamond_map.network.parameters()
    eps = max(torch.finfo(weight.dtype).eps for weight in parameters if weight.is_floating_point())
    return max(0.01, 0.3 * eps ** (1 / 3))


def _lagrangian_residual(diamond_map: DiamondMap, batch: Batch, mapped: Tensor, derivative: Tensor) -> Tensor:
    target = mapped.detach()
    asked = batch.r.clamp(min=SMALLEST_TIME)
    velocity = (target - teacher_denoised(diamond_map, batch, target, asked)) / expand(asked, target)
    return _squared(expand(batch.r, target) * (derivative - velocity))


def progressive(diamond_map: DiamondMap, batch: Batch) -> Tensor:
    """`| D_{s -> r} - D_{s -> m -> r} |^2` with `m` half-way: two short steps of the map teach it a long one."""
    middle = _between(batch, 0.5)
    with torch.no_grad():
        first = student_denoised(diamond_map, batch, batch.xbar, batch.s, middle)
        halfway = toward(batch.xbar, first, batch.s, middle)
        second = student_denoised(diamond_map, batch, halfway, middle, batch.r)
    return _joined_residual(diamond_map, batch, middle, first, second)


def eulerian(diamond_map: DiamondMap, batch: Batch, step: float = 0.5) -> Tensor:
    """`| D_{s -> r} - D_{s -> m -> r} |^2` where the teacher leads to `m` and the map goes on.

    The teacher takes `step` of the way to `r`, by Heun's method.
    """
    middle = torch.minimum(_between(batch, step).clamp(min=SMALLEST_TIME), batch.s)
    with torch.no_grad():
        start = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
        end = teacher_denoised(diamond_map, batch, toward(batch.xbar, start, batch.s, middle), middle)
        first = (start + end) / 2
        halfway = toward(batch.xbar, first, batch.s, middle)
        second = student_denoised(diamond_map, batch, halfway, middle, batch.r)
    return _joined_residual(diamond_map, batch, middle, first, second)


def _joined_residual(diamond_map: DiamondMap, batch: Batch, middle: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """`| D_{s -> r} - D |^2` where `D` takes `xbar_s` to `r` as `first` to the middle and then `second` do."""
    s, r = batch.s, batch.r
    # (1 - r/s) D = (r/m) (1 - m/s) D_1 + (1 - r/m) D_2.
    share = r * (s - middle) / (middle * (s - r)).clamp(min=1e-12)
    target = torch.lerp(second, first, expand(share, first).to(first.dtype))
    return _squared(student_denoised(diamond_map, batch, batch.xbar, s, r) - target)


def _between(batch: Batch, share: float) -> Tensor:
    """The inner time after a share of the way from `s` to `r`."""
    level = batch.noise_to_signal
    return inner_time(torch.lerp(inner_angle(batch.s, level), inner_angle(batch.r, level), share), level)


LOSSES: dict[str, Loss] = {
    "lagrangian": lagrangian,
    "central_difference": central_difference,
    "progressive": progressive,
    "eulerian": eulerian,
}
"""Off-diagonal losses by name."""


def draw_inner_times(noise_to_signal: Tensor) -> tuple[Tensor, Tensor]:
    """Inner times `(s, r)` of the off-diagonal loss at outer levels `[N]`: `[N]` float64, `0 <= r <= s <= 1`.

    They are uniform in `inner_angle`; on about half of the rows `s` is 1, where the map is used.
    """
    count = len(noise_to_signal)
    angle = math.pi / 2 * torch.rand(count, dtype=torch.float64)
    s = inner_time(angle, noise_to_signal).clamp(min=SMALLEST_TIME)
    s = torch.where(torch.rand(count) < 0.5, 1.0, s)
    r_angle = inner_angle(s, noise_to_signal) * torch.rand(count, dtype=torch.float64)
    return s, torch.minimum(inner_time(r_angle, noise_to_signal), s)


def draw_diagonal_times(noise_to_signal: Tensor) -> Tensor:
    """Inner times `s` of the diagonal loss, as above; a quarter of them are 1."""
    count = len(noise_to_signal)
    angle = math.pi / 2 * torch.rand(count, dtype=torch.float64)
    s = inner_time(angle, noise_to_signal).clamp(min=SMALLEST_TIME)
    return torch.where(torch.rand(count) < 0.25, 1.0, s)


def _squared(residual: Tensor) -> Tensor:
    return residual.float().square().flatten(1).mean(1)
