"""Guidance: sampling with the denoiser of the reward-tilted law."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..backbones.base import Denoising
from ..levels import Level, signal_and_noise
from ..network import Network
from ..posteriors import DenoiserPoint, PosteriorSampler
from ..rewards.base import Reward
from ..transitions import Transition
from .base import Alignment, Cloud, check_gradient, root_mean_square
from .look_ahead import REWARD_GRADIENTS, LookAhead, look_ahead
from .model import TiltedModel
from .random_source import RandomSource


@dataclass(frozen=True)
class Guidance(Alignment):
    """Replaces the denoiser by the reward-tilted one, `D_r = D + guidance_strength * kappa^2 grad_y V`.

    With `DenoiserPoint` and `pathwise` this is DPS (arXiv 2209.14687); with exact look-aheads, `pathwise` or
    `tilted_mean`, strength 1 and no limit it samples the tilted law as the steps shrink. The defaults are made to
    raise the reward at the price of plain sampling.

    Args:
        posterior: draws the look-aheads from which the value is estimated.
        gradient: `pathwise` differentiates network, decoder and reward; `isotropic` decoder and reward only, at no
            further cost of the network; `tilted_mean` needs no derivative but at least two look-aheads.
        guidance_strength: multiplies the shift; 1 is exact.
        max_shift: limit of the shift's root-mean-square, in units of `kappa / sqrt(1 + kappa^2)`, the posterior
            deviation of data of unit variance; None for no limit.
        transition: how particles move; None for `GlassTransition()`, and `RenoiseTransition()` where the model is a
            few-step one. Transitions of several inner steps are guided in each of them.
        num_particles: guided samples of each image, of which the best is returned.
    """

    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    gradient: str = "isotropic"
    guidance_strength: float = 1.0
    max_shift: float | None = 0.25
    transition: Transition | None = None
    num_particles: int = 1

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradient(self.gradient, self.posterior)
        if self.max_shift is not None and self.max_shift <= 0:
            raise ValueError(f"max_shift is {self.max_shift}; give a positive number, or None for no limit")

    @property
    def needs_reward_gradient(self) -> bool:
        return self.gradient in REWARD_GRADIENTS

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        if self.needs_reward_gradient and not reward.differentiable:
            raise ValueError(
                f"gradient is {self.gradient!r}, but reward {reward.name!r} has no gradient; "
                "use gradient='tilted_mean' with GlassPosterior(num_samples=4), or alignment 'smc' or 'best_of_n'"
            )

    def resolve(self, model: Denoising) -> Guidance:
        method = super().resolve(model)
        if not method.transition.uses_prediction and not method.transition.is_stochastic:
            raise ValueError(
                f"transition is {method.transition}, which neither uses the predicted sample nor draws noise, so that "
                "nothing could guide it; take ODETransition() or RenoiseTransition()"
            )
        return method

    def shift(self, ahead: LookAhead, noise_to_signal: Level) -> Tensor:
        """The limited, scaled shift of the denoised samples, `[N, ...]`."""
        shift = self.guidance_strength * ahead.shift
        if self.max_shift is None:
            return shift
        _, sigma = signal_and_noise(noise_to_signal)
        size = root_mean_square(shift).clamp(min=torch.finfo(shift.dtype).tiny)
        return shift * (self.max_shift * sigma / size).clamp(max=1).to(shift).reshape(-1, *[1] * (shift.ndim - 1))

    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        with_prediction = self.transition.uses_prediction
        ahead = look_ahead(model, self.posterior, cloud.x, noise_to_signal, random, self.gradient, with_prediction)
        shift = self.shift(ahead, noise_to_signal)
        predicted, noise = ahead.predicted, random.normal(self.num_particles, cloud.x.shape[1:])
        if with_prediction:
            predicted = predicted + shift
        else:
            # The shift enters through the noise, whose mean moves the step's as much.
            noise = noise + self.transition.tilt_gain(noise_to_signal, next_noise_to_signal) * shift
        network = self._tilted_network(model, random)
        x = self.transition.step(network, cloud.x, noise_to_signal, next_noise_to_signal, predicted, noise)
        sizes = root_mean_square(shift).unflatten(0, (-1, self.num_particles))
        figures = {**ahead.figures(self.num_particles), "gradient_norm": sizes.mean(1)}
        return Cloud(x, cloud.log_weights, cloud.log_evidence, figures=figures)

    def _tilted_network(self, model: TiltedModel, random: RandomSource) -> Network:
        """The model with `D_r` in place of `D` at the inner queries of a transition."""
        network = model.network(model.owners(self.num_particles))

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            ahead = look_ahead(model, self.posterior, x, float(noise_to_signal), random, self.gradient)
            return network.mean(x, noise_to_signal, ahead.predicted) + self.shift(ahead, noise_to_signal)

        return replace(network, denoise=denoise)
