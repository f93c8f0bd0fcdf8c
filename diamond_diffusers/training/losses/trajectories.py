"""Distillation from whole trajectories of the teacher's inner flow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ...core.glass import inner_times
from ...core.model import Conditions
from ...core.tensors import expand, repeat_each
from ..data.trajectories import Trajectories
from ..levels import per_posterior_variance
from . import register_loss
from .base import DistillationLoss

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


ONE_STEP_SHARE = 0.4
"""Of the observations, learnt on the way from pure noise to clean data, where the map is used most."""
FROM_NOISE_SHARE = 0.3
"""Of the observations, learnt on the way from pure noise to a time in between, which transitions use."""


@register_loss("trajectories")
@dataclass(frozen=True)
class TrajectoryLoss(DistillationLoss):
    """Learns to lead from a state of a trajectory to a later one, and to draw one-step samples of the teacher's law.

    From a state in between, the loss is a regression of `D_th`. From noise a network cannot follow every trajectory,
    and a regression would give the mean of those that it cannot tell apart, hence too narrow a law. There an energy
    score is minimised, which is least for the right law itself (Gneiting & Raftery, 2007; for diffusion models arXiv
    2502.02483)::

        (|D_1 - z_2| + |D_2 - z_1|) / 2 - |D_1 - D_2| / 2

    with the teacher's samples `z_1, z_2` and the map's `D_1, D_2` from the same two noises. Each is compared with the
    one from the other noise, of which it is independent. Of more than two trajectories it is the mean over all pairs.

    Args:
        regression_weight: weight of the regression beside the energy score. The regression speeds up the beginning, but
            narrows the law.
    """

    needs_trajectories: ClassVar[bool] = True

    regression_weight: float = 0.05

    def __call__(
        self, diamond_map: DiamondMap, data: Trajectories, conditions: Conditions, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of trajectories under the conditions of their `N` observations, and its parts to log."""
        (count, num_trajectories), device = data.states.shape[:2], data.x.device
        start, end = draw_places(count, data.states.shape[2] - 1)
        times, level = inner_times(data.states.shape[2] - 1, data.noise_to_signal), data.noise_to_signal
        s, r = (times[place, torch.arange(count)] for place in (start, end))

        # Times and levels are on the CPU, and states on the device, which is not to wait for an index.
        rows = torch.arange(count, device=device)
        start, end = (place.to(device, non_blocking=True) for place in (start, end))
        xbar, target = data.states[rows, :, start], data.states[rows, :, end]
        kept = expand(r / s, target).to(target)
        target = (target - kept * xbar) / (1 - kept)

        s, r, x, level = (repeat_each(of_observation, num_trajectories) for of_observation in (s, r, data.x, level))
        conditions = conditions.rows(repeat_each(rows, num_trajectories))
        denoised = diamond_map.mean_denoiser(xbar.flatten(0, 1), s, r, x, level, conditions)
        denoised = denoised.unflatten(0, (-1, num_trajectories)).float()

        weights = per_posterior_variance(data.noise_to_signal).to(device, denoised.dtype, non_blocking=True)
        regression = weights * (denoised - target).square().flatten(1).mean(1)
        score = weights.sqrt() * energy_score(denoised, target)
        from_noise = start == 0
        loss = torch.where(from_noise, score + self.regression_weight * regression, regression)
        parts = {"regression": regression, "energy_score": score * from_noise}
        return loss.mean(), {name: part.detach().mean() for name, part in parts.items()}


def draw_places(count: int, num_inner_steps: int) -> tuple[Tensor, Tensor]:
    """Places of `count` pairs of states on trajectories, `0 <= start < end <= num_inner_steps`."""
    kind = torch.rand(count)
    start = torch.randint(0, num_inner_steps, (count,))
    start = torch.where(kind < ONE_STEP_SHARE + FROM_NOISE_SHARE, 0, start)
    end = start + 1 + (torch.rand(count) * (num_inner_steps - start)).long()
    return start, torch.where(kind < ONE_STEP_SHARE, num_inner_steps, end)


def energy_score(drawn: Tensor, true: Tensor) -> Tensor:
    """Energy scores `[N]` of K samples `[N, K, ...]` each; those at the same place have the same noise."""
    pairs = list(combinations(range(drawn.shape[1]), 2))
    across = [(_distance(drawn[:, i], true[:, j]) + _distance(drawn[:, j], true[:, i])) / 2 for i, j in pairs]
    apart = [_distance(drawn[:, i], drawn[:, j]) / 2 for i, j in pairs]
    return torch.stack(across).mean(0) - torch.stack(apart).mean(0)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean squares of differences `[N]`: half over the whole sample, half the mean over its places.

    Whole samples have too many dimensions to show what is wrong at one place.
    """
    squares = (first - second).square()
    # Images have their channels first, packed latents last.
    places = squares.mean(1 if squares.ndim == 4 else -1).reshape(len(squares), -1)
    # The root has no derivative at zero, where the two samples of an untrained map are.
    return ((places.mean(1) + 1e-8).sqrt() + (places + 1e-8).sqrt().mean(1)) / 2
