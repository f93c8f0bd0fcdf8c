"""Whole trajectories of the teacher's inner flow, which can be cached and used many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.glass import inner_states
from ...core.levels import Level, add_noise
from ...core.model import Conditions
from ..levels import PURE_NOISE_SHARE, draw_levels

if TYPE_CHECKING:
    from ...families.base import Family

INNER_STEPS = 8
"""Of a trajectory. With the `exponential` solver their law is that of many steps."""


@dataclass(frozen=True)
class TrajectoryDraws:
    """What is drawn of each row.

    Attributes:
        num_trajectories: K of an observation, at least 2, since the energy score compares samples of different noise.
        pure_noise_share: of the observations, as of `draw_levels`.
    """

    num_trajectories: int = 2
    pure_noise_share: float = PURE_NOISE_SHARE


@dataclass(frozen=True)
class TrajectoryNoise:
    """All that is random of the trajectories of `N` observations.

    Attributes:
        noise_to_signal: levels of the observations, `[N]` float64.
        observation: standard normal noise of the observations, `[N, ...]`.
        inner: standard normal noise that the trajectories begin at, `[N, K, ...]`.
    """

    noise_to_signal: Tensor
    observation: Tensor
    inner: Tensor

    @classmethod
    def draw(
        cls, count: int, shape: Sequence[int], draws: TrajectoryDraws, device: torch.device | None = None
    ) -> TrajectoryNoise:
        """Draws the noise of `count` observations whose latents are of a shape, from torch's own generators."""
        levels = draw_levels(count, draws.pure_noise_share)
        observation = torch.randn(count, *shape, device=device)
        inner = torch.randn(count * draws.num_trajectories, *shape, device=device)
        return cls(levels, observation, inner.unflatten(0, (count, draws.num_trajectories)))

    def rows(self, index: slice, device: torch.device) -> TrajectoryNoise:
        """The noise of some of the observations, on a device but for the levels, which stay on the CPU."""
        observation, inner = (noise[index].to(device) for noise in (self.observation, self.inner))
        return TrajectoryNoise(self.noise_to_signal[index], observation, inner)


@dataclass(frozen=True)
class Trajectories:
    """K trajectories of the inner flow for each of `N` observations.

    Attributes:
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their levels, `[N]` float64, on the CPU.
        states: inner states `[N, K, n + 1, ...]` at `inner_times(n, noise_to_signal)`, from noise to samples of the
            posterior.
    """

    x: Tensor
    noise_to_signal: Tensor
    states: Tensor

    @classmethod
    def draw(
        cls, family: Family, z: Tensor, conditions: Conditions, draws: TrajectoryDraws | None = None
    ) -> Trajectories:
        """Observes clean samples `z [N, ...]` at random levels and runs the inner flow of the guided teacher."""
        noise = TrajectoryNoise.draw(len(z), z.shape[1:], draws or TrajectoryDraws(), z.device)
        return cls.follow(family, z, conditions, noise)

    @classmethod
    @torch.no_grad()
    def follow(cls, family: Family, z: Tensor, conditions: Conditions, noise: TrajectoryNoise) -> Trajectories:
        """Observes clean samples `z [N, ...]` with given noise, and runs the teacher's inner flow from it."""
        x = add_noise(z, noise.observation, noise.noise_to_signal)
        index = torch.arange(len(z), device=z.device)

        def denoise(rows: Tensor, level: Level) -> Tensor:
            return family.predict(rows, level, conditions.rows(index.repeat_interleave(len(rows) // len(z))))

        states = inner_states(
            denoise,
            x,
            noise.noise_to_signal,
            noise.inner.flatten(0, 1),
            num_inner_steps=INNER_STEPS,
            solver="exponential",
        )
        return cls(x, noise.noise_to_signal, torch.stack(list(states), 1).unflatten(0, noise.inner.shape[:2]))
