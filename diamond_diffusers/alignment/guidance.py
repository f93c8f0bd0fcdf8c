"""Guidance: sampling with the denoiser of the reward-tilted law."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..backbones.base import Denoising
from ..levels import Level, expand, signal_and_noise
from ..network import Network
from ..posteriors import DenoiserPoint, PosteriorSampler
from ..rewards.base import Reward
from ..transitions import Transition
from .base import Alignment, Cloud, check_gradient
from .look_ahead import REWARD_GRADIENTS, LookAhead, look_ahead
from .model import TiltedModel
from .random_source import RandomSource, driving_noise
from .scalings import SCALINGS, limited, root_mean_square


@dataclass(frozen=True)
class Guidance(Alignment):
    """Replaces the denoiser by the reward-tilted one, `D_r = D + guidance_strength * kappa^2 grad_y V`.

    With `DenoiserPoint` and `pathwise` this is DPS (arXiv 2209.14687); with exact look-aheads, `pathwise`,
    `tilted_mean` or `hybrid`, strength 1, the `exact` scaling and no limit it samples the tilted law as the steps
    shrink. The defaults are made to raise the reward at the price of plain sampling.

    A step is::

        for each part j = 1..J of the step's guidance, J = num_corrections:
            x_j = x moved by what the parts before it move:  y_j = y + (1 - kappa' / kappa) (d_1 + .. + d_(j-1)) / J
            d_j = the limited, scaled shift at x_j
        D_r = D(x) + (d_1 + .. + d_J) / J

    Args:
        posterior: draws the look-aheads from which the value is estimated.
        gradient: `pathwise` differentiates network, decoder and reward; `isotropic` decoder and reward only, at no
            further cost of the network; `tilted_mean` needs no derivative but at least two look-aheads; `hybrid` joins
            the pathwise one and the tilted mean in proportion of their errors. With `FlowMapPoint`, `pathwise` is
            FMRG-J and `isotropic` has the direction of FMRG-E (arXiv 2604.27147).
        guidance_strength: multiplies the shift; 1 is exact.
        max_shift: limit of the shift's root-mean-square, in units of `kappa / sqrt(1 + kappa^2)`, the posterior
            deviation of data of unit variance; None for no limit. It limits the shift of every scaling.
        transition: how particles move; None for `GlassTransition()`, and `RenoiseTransition()` where the model is a
            few-step one. Transitions of several inner steps are guided in each of them. One that does not use the
            predicted sample (`DiamondTransition`) is guided through the mean of its driving noise, which is the same
            as the steps shrink, and needs no evaluation of the base model.
        num_particles: guided samples of each image, of which the best is returned.
        scaling: `exact`; `norm`, which brings each term of the gradient to root-mean-square 1 before the coefficient;
            or `auto`, which gives the change of the velocity the size of the velocity. See `scalings`.
        max_coefficient: limit of the coefficient `kappa` of the gradient in `exact` and `norm`, which grows without
            bound towards pure noise.
        max_noise_to_signal, min_noise_to_signal: levels between which, both included, there is guidance; beyond them
            no look-aheads are drawn. Queries within a transition count by their own level.
        num_corrections: parts J of a step's guidance, each with look-aheads of its own at the state that the parts
            before it have reached. So are the inner iterations of FMRG, but their shifts add up: multiply
            `guidance_strength` by J for as strong a pull. Here their mean is taken and each moves the state as far as
            it will move the step, so that any number is exact as steps shrink.
    """

    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    gradient: str = "isotropic"
    guidance_strength: float = 1.0
    max_shift: float | None = 0.25
    transition: Transition | None = None
    num_particles: int = 1
    scaling: str = "exact"
    max_coefficient: float = math.inf
    max_noise_to_signal: float = math.inf
    min_noise_to_signal: float = 0.0
    num_corrections: int = 1

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gradient(self.gradient, self.posterior)
        if not math.isfinite(self.guidance_strength):
            raise ValueError(
                f"guidance_strength is {self.guidance_strength}; give a finite number, of which 1 is exact"
            )
        if self.max_shift is not None and not self.max_shift > 0:
            raise ValueError(f"max_shift is {self.max_shift}; give a positive number, or None for no limit")
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling is {self.scaling!r}; choose one of {', '.join(SCALINGS)}")
        if not self.max_coefficient > 0:
            raise ValueError(f"max_coefficient is {self.max_coefficient}; give a positive number, or leave it out")
        if self.scaling == "auto" and self.max_coefficient < math.inf:
            raise ValueError(
                f"max_coefficient is {self.max_coefficient}, but scaling='auto' has no coefficient; leave it out, or "
                "limit the shift by max_shift"
            )
        if not 0 <= self.min_noise_to_signal <= self.max_noise_to_signal:
            raise ValueError(
                f"min_noise_to_signal is {self.min_noise_to_signal} and max_noise_to_signal is "
                f"{self.max_noise_to_signal}; the first must lie between 0 and the second"
            )
        if self.num_corrections < 1:
            raise ValueError(f"num_corrections is {self.num_corrections}; it must be at least 1")

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

    def guides_at(self, noise_to_signal: float) -> bool:
        """Whether there is guidance at a level."""
        return self.min_noise_to_signal <= noise_to_signal <= self.max_noise_to_signal

    def shift(self, ahead: LookAhead, noise_to_signal: float) -> Tensor:
        """The scaled, limited shift of the denoised samples, `[N, ...]`; zero beyond the levels of guidance."""
        shift = SCALINGS[self.scaling](ahead, noise_to_signal, self.max_coefficient)
        shift = self.guidance_strength * self.guides_at(noise_to_signal) * shift
        if self.max_shift is None:
            return shift
        _, sigma = signal_and_noise(noise_to_signal)
        return limited(shift, root_mean_square(shift), self.max_shift * sigma)

    def look_ahead(
        self,
        model: TiltedModel,
        posterior: PosteriorSampler,
        x: Tensor,
        noise_to_signal: float,
        random: RandomSource,
        with_prediction: bool = True,
        with_samples: bool = False,
    ) -> LookAhead:
        """Look-aheads with the gradient in the form that `shift` takes; arguments as of `look_ahead.look_ahead`."""
        with_terms = self.scaling == "norm"
        return look_ahead(
            model,
            posterior,
            x,
            noise_to_signal,
            random,
            self.gradient,
            with_prediction,
            with_terms,
            with_samples,
        )

    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        network, figures = model.network(model.owners(self.num_particles, cloud.x.device)), {}
        needs_prediction = self.transition.needs_prediction(network)
        if self._guides(model, noise_to_signal):
            predicted, shift, figures = self._guide(
                model, cloud.x, noise_to_signal, next_noise_to_signal, random, needs_prediction
            )
        else:
            predicted = network.predict(cloud.x, noise_to_signal) if needs_prediction else None
            shift = torch.zeros_like(cloud.x)
        noise = driving_noise(
            random, self.transition, cloud.x, self.num_particles, noise_to_signal, next_noise_to_signal
        )
        if self.transition.uses_prediction:
            predicted = (predicted if needs_prediction else network.denoise(cloud.x, noise_to_signal)) + shift
        else:
            # The shift enters through the noise, whose mean moves the step's as much.
            noise = noise + self.transition.tilt_gain(noise_to_signal, next_noise_to_signal) * shift
        tilted = self._tilted(network, model, random)
        x = self.transition.step(tilted, cloud.x, noise_to_signal, next_noise_to_signal, predicted, noise)
        return Cloud(x, cloud.log_weights, cloud.log_evidence, figures=figures)

    def _guides(self, model: TiltedModel, noise_to_signal: float) -> bool:
        # Without a reward the sample is the plain one, and draws what that draws.
        return self.guides_at(noise_to_signal) and model.reward_scale != 0

    def _guide(
        self,
        model: TiltedModel,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        needs_prediction: bool,
    ) -> tuple[Tensor | None, Tensor, dict[str, Tensor]]:
        """What the model predicts at particles, where that is needed, the step's shift, and its figures."""
        ahead = self.look_ahead(model, self.posterior, x, noise_to_signal, random, needs_prediction)
        shift = self.shift(ahead, noise_to_signal)
        alpha, _ = signal_and_noise(noise_to_signal)
        # Pure noise holds nothing to correct.
        for part in range(1, self.num_corrections if alpha > 0 else 1):
            share = alpha * (1 - next_noise_to_signal / noise_to_signal) * part / self.num_corrections
            moved = x + expand(share, x) * shift
            again = self.look_ahead(model, self.posterior, moved, noise_to_signal, random, with_prediction=False)
            shift = torch.lerp(shift, self.shift(again, noise_to_signal), 1 / (part + 1))
        sizes = root_mean_square(shift).unflatten(0, (-1, self.num_particles))
        return ahead.predicted, shift, {**ahead.figures(self.num_particles), "gradient_norm": sizes.mean(1)}

    def _tilted(self, network: Network, model: TiltedModel, random: RandomSource) -> Network:
        """The model with `D_r` in place of `D` at the inner queries of a transition, which is handed the first one."""

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            level = float(noise_to_signal)
            if not self._guides(model, level):
                return network.denoise(x, noise_to_signal)
            ahead = self.look_ahead(model, self.posterior, x, level, random, network.predicts_mean)
            return network.mean(x, noise_to_signal, ahead.predicted) + self.shift(ahead, level)

        return replace(network, denoise=denoise, predicts_mean=True)
