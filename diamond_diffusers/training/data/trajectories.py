"""Whole trajectories of the teacher's inner flow, which can be cached and used many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import inner_states
from ...core.levels import Level, add_noise
from ...core.model import Conditions
from ..levels import draw_levels

if TYPE_CHECKING:
    from ...families.base import Family

PAIR = 2
"""Trajectories of an observation: the energy score compares two."""
INNER_STEPS = 8
"""Of a trajectory. With the `exponential` solver their law is that of many steps."""


@dataclass(frozen=True)
class Trajectories:
    """Two trajectories of the inner flow for each of `N` observations.

    Attributes:
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their levels, `[N]` float64.
        states: inner states `[N, 2, n + 1, ...]` at `inner_times(n, noise_to_signal)`, from noise to samples of the
            posterior.
    """

    x: Tensor
    noise_to_signal: Tensor
    states: Tensor

    @classmethod
    @torch.no_grad()
    def draw(cls, family: Family, z: Tensor, conditions: Conditions) -> Trajectories:
        """Observes clean samples `z [N, ...]` at random levels and runs the inner flow of the guided teacher."""
        levels = draw_levels(len(z))
        x = add_noise(z, torch.randn_like(z), levels)
        index = torch.arange(len(z))

        def denoise(rows: Tensor, level: Level) -> Tensor:
            return family.predict(rows, level, conditions.rows(index.repeat_interleave(len(rows) // len(z))))

        noise = torch.randn_like(z.repeat_interleave(PAIR, 0))
        states = inner_states(denoise, x, levels, noise, num_inner_steps=INNER_STEPS, solver="exponential")
        return cls(x, levels, torch.stack(list(states), 1).unflatten(0, (-1, PAIR)))
