"""Noise optimisation by the gradient through sampler, decoder and reward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...rewards.base import Reward
from ..noise_ascent import NoiseAscent, NoiseSampler
from ..noise_rounds import Sample
from . import METHODS


@METHODS.register("noise_optimization")
@dataclass(frozen=True)
class NoiseOptimization(NoiseAscent):
    """ReNO (Eyring et al., arXiv 2406.04312): the gradient is taken through sampler, decoder and reward.

    Made for one-step and few-step models: each iteration differentiates all steps, and memory holds them all, of
    `particle_batch_size` particles at a time (see `gradient_checkpointing`). An ordinary model of many steps works the
    same, at that price. The defaults are those of the paper but for the number of iterations,
    which the preset `reno` has too. Options and what is kept: see `NoiseAscent`.

    Example:
        >>> pipe("a red star", alignment=NoiseOptimization(num_iterations=1), num_inference_steps=1)
    """

    @property
    def needs_reward_gradient(self) -> bool:  # type: ignore[override]
        return self.num_iterations > 1

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        if self.needs_reward_gradient and reward is not None and not reward.differentiable:
            raise ValueError(
                f"reward {reward.name!r} has no gradient, which alignment 'noise_optimization' ascends; "
                "use alignment 'noise_evolution', 'smc' or 'best_of_n'"
            )

    def sample_and_gradient(self, sampler: NoiseSampler, noise: Tensor) -> tuple[Sample, Tensor]:
        return sampler.differentiated(noise)
