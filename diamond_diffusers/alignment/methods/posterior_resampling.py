"""Particles that move by posterior samples, chosen among several by their reward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ...core.deferred import read
from ...core.glass import EarlyStop
from ...core.interval import Interval
from ...core.tensors import sent
from ...core.wording import shown
from ...posteriors.base import PosteriorSampler
from ...posteriors.glass import GlassPosterior
from ...posteriors.weighted import WeightedPosterior
from ...rewards.base import Reward
from ...transitions.inner_flow import check_correlation
from ...transitions.sampled_model import SampledModel
from ..base import Method
from ..cloud import Cloud
from ..guide import Guide
from ..law import Law
from ..look_ahead import look_ahead
from ..random_source import RandomSource
from ..smc_parts.resampling import effective_sample_size, invert, uniform
from . import METHODS


@METHODS.register("posterior_resampling")
@dataclass(frozen=True)
class PosteriorResampling(Method):
    """Draws K look-aheads of a particle, chooses one by reward, and noises it to the next level.

    Given a clean sample, the next state has a Gaussian law, so that a posterior sampler makes a transition::

        z_k ~ p(z | y),  k = 1..K;      z = z_k with probability ~ w_k exp(r(z_k))
        y' = g y + (1 - g) (z + s / (1 - s) e),     with g and s of the early stop (GLASS, arXiv 2509.25170)

    As K grows `z` is a sample of the tilted posterior and the particle follows the reward-tilted law exactly, without a
    gradient and without weights. A step costs the evaluations of its look-aheads alone: with a Diamond Map, K of them.
    For finite K the law is tilted less where few look-aheads score high. With a `reward_scale` of 0 equally weighted
    look-aheads are not compared: the first is taken, which is plain sampling in steps of this kind.

    Args:
        num_particles: independent particles of each image, of which the best is returned.
        posterior: draws the look-aheads, at least two; None for `GlassPosterior(num_inner_steps=4, num_samples=4)`, and
            on a few-step model without a posterior mean for `WeightedPosterior(num_samples=4)`. They are what moves
            particles, so that a sampler which loses some of the posterior's spread makes images worse than plain ones
            however it chooses: of `GlassPosterior` take four inner steps or more (with two, rewards on the embedded
            model were below those of plain sampling), or the one evaluation of a Diamond Map.
        correlation: `rho` in `[0, 1]` between the noises before and after a step; `"ddpm"` is `kappa_next / kappa`.
        guide: moves the chosen sample on by the shift that it would give the denoised one, which samples too are
            shifted by where the posterior is Gaussian and the reward linear; of use where K is too small for high
            rewards to be among the look-aheads.

    Example:
        >>> method = PosteriorResampling(posterior=DiamondPosterior(num_samples=2), guide=Guide())
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    num_particles: int = 1
    posterior: PosteriorSampler | None = None
    correlation: float | str = "ddpm"
    guide: Guide | None = None

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_correlation(self.correlation)
        if self.posterior is None:
            return
        if self.guide is not None:
            self.guide.check_comparable(self.posterior)
        elif self.posterior.num_samples < 2:
            raise ValueError(
                f"posterior is {shown(self.posterior)}, of whose single look-ahead there is nothing to choose; "
                "take DiamondPosterior(num_samples=4) or GlassPosterior(num_samples=4), or leave it out"
            )

    @property
    def needs_reward_gradient(self) -> bool:  # type: ignore[override]
        return self.guide is not None and self.guide.needs_reward_gradient

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        if self.guide is not None and reward is not None:
            self.guide.check_reward(reward)

    def resolve(self, model: SampledModel) -> Self:
        # Look-aheads are what moves the particles.
        if self.posterior is not None:
            return self.with_posterior(model)
        glass = GlassPosterior(num_inner_steps=4, num_samples=4)
        own: PosteriorSampler = glass if model.has_denoiser else WeightedPosterior(num_samples=4)
        return replace(self, posterior=own).with_posterior(model)

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        level = interval.start
        assert self.posterior is not None, "`resolve` fills it in, and comes before the first step"
        drawn = (law, self.posterior, cloud.x, level, random)
        guide = self.guide if self.guide is not None and law.is_tilted and self.guide.acts_at(level) else None
        if guide is not None:
            ahead = guide.look_ahead(*drawn, with_prediction=False, with_samples=True)
        else:
            ahead = look_ahead(*drawn, with_prediction=False, with_samples=True, with_values=law.is_tilted)
        assert ahead.samples is not None and ahead.tilted_log_weights is not None, "both were asked for"
        # What is read here is all that a step waits for.
        log_weights = read(ahead.tilted_log_weights).double()
        chosen = sent(choose(log_weights, random), cloud.x.device)
        z = ahead.samples[torch.arange(len(chosen), device=chosen.device), chosen]
        if guide is not None:
            z = z + guide.shift(ahead, level)

        fresh = random.normal(self.num_particles, cloud.x.shape[1:])
        x = noised_sample(cloud.x, z, fresh, interval, interval.correlation(self.correlation))

        shape = (-1, self.num_particles)
        sizes = effective_sample_size(log_weights).unflatten(0, shape)
        figures = {**ahead.figures(self.num_particles), "look_ahead_effective_sample_size": sizes.mean(1)}
        values = ahead.values.unflatten(0, shape)
        return Cloud(x, cloud.log_weights, cloud.log_evidence, values=values, figures=figures)


def noised_sample(x: Tensor, z: Tensor, noise: Tensor, interval: Interval, correlation: float) -> Tensor:
    """Particles at the next level, given a clean sample of each: a transition where `z ~ p(z | x)`.

    Args:
        x: particles `[N, ...]` in the bounded coordinate.
        z: clean samples `[N, ...]`.
        noise: standard normal `[N, ...]`.
        interval: from the level of `x` to the one to reach.
        correlation: `rho` in `[0, 1]` between the noises at the two levels.
    """
    early_stop = EarlyStop(interval, correlation)
    return early_stop.observation(x, torch.lerp(z, noise, early_stop.stop))


def choose(log_weights: Tensor, random: RandomSource) -> Tensor:
    """Indices `[N]`, each drawn by the weights of its row of `[N, K]`, and 0 as often as that law allows.

    The weights are on the CPU, of `random`'s images, equally many rows of each. Samples come in no order, so 0 stands
    for a uniform index: it is kept with probability `min(1, K w_0)` and else replaced by a draw from what exceeds
    uniform weights.
    """
    weights = torch.softmax(log_weights, 1)
    count = weights.shape[1]
    rows_of_image = len(weights) // random.num_images
    chosen = []
    for row, weight in enumerate(weights):
        keep, place = uniform(2, random.of_image(row // rows_of_image))
        excess = (weight - 1 / count).clamp(min=0)
        chosen.append(0 if keep < count * weight[0] else int(invert(excess, place[None])))
    return torch.tensor(chosen)
