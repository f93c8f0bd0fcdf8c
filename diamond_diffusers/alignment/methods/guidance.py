"""Guidance: sampling with the denoiser of the reward-tilted law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.flow_map import has_map_to_data
from ...core.levels import Level, RectifiedFlowPath, ode_step, signal_and_noise
from ...core.model import Model
from ...core.network import Network
from ...core.tensors import expand
from ...posteriors.base import PosteriorSampler
from ...posteriors.denoiser import DenoiserPoint
from ...rewards.base import Reward
from ...transitions.base import Transition
from ..base import AlignmentResult, Cloud, Method, check_comparable
from ..law import TiltedModel
from ..look_ahead import GRADIENTS, REWARD_GRADIENTS, Aim, LookAhead, look_ahead
from ..look_ahead_search import highest
from ..noise_rounds import Sample
from ..random_source import RandomSource, driving_noise
from ..scalings import SCALINGS, TERM_SCALINGS, limited, root_mean_square
from ..trace import Trace
from . import METHODS


@dataclass(frozen=True, kw_only=True)
class GuidedCloud(Cloud):
    """A cloud that remembers the best clean sample that each particle has looked at.

    Attributes:
        best: these samples, `[B P, ...]`; None before there are any.
        best_values: their scaled rewards, `[B P]`.
    """

    best: Tensor | None = None
    best_values: Tensor | None = None

    def seen(self, samples: Tensor, values: Tensor) -> GuidedCloud:
        """This cloud after clean samples `[B P, K, ...]` of scaled rewards `[B P, K]` were looked at."""
        if self.best is not None:
            samples = torch.cat([self.best.unsqueeze(1), samples], 1)
            values = torch.cat([self.best_values.unsqueeze(1), values], 1)
        index = values.argmax(1)
        rows = torch.arange(len(index), device=index.device)
        return replace(self, best=samples[rows, index], best_values=values[rows, index])

    def particles(self, index: Tensor) -> GuidedCloud:
        """The particles `[B n]` of the cloud, n of each image, equally weighted."""
        kept = {} if self.best is None else {"best": self.best[index], "best_values": self.best_values[index]}
        weights = self.log_weights.new_zeros(len(self.log_weights), len(index) // len(self.log_weights))
        return replace(self, x=self.x[index], log_weights=weights, **kept)


@METHODS.register("guidance")
@dataclass(frozen=True)
class Guidance(Method):
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
        transition: how particles move; None for how the stock pipeline moves them. Transitions of several inner steps
            are guided in each of them. One that does not use the predicted sample (`DiamondTransition`) is guided
            through the mean of its driving noise, which is the same as the steps shrink, and needs no evaluation of the
            base model; one without noise (`FlowMapTransition`) is moved as far as the step of the ODE would be.
        num_particles: guided samples of each image, of which the best is returned.
        scaling: `exact`; `norm`, which brings each term of the gradient to root-mean-square 1 before the coefficient,
            and `sana_sprint_norm` with another coefficient; or `auto`, which gives the change of the velocity the size
            of the velocity. See `scalings`.
        max_coefficient: limit of the coefficient of the gradient in all but `auto`, which grows without bound towards
            pure noise.
        max_noise_to_signal, min_noise_to_signal: levels between which, both included, there is guidance; beyond them
            no look-aheads are drawn. Queries within a transition count by their own level.
        num_corrections: parts J of a step's guidance, each with look-aheads of its own at the state that the parts
            before it have reached. So are the inner iterations of FMRG, but their shifts add up: multiply
            `guidance_strength` by J for as strong a pull. Here their mean is taken and each moves the state as far as
            it will move the step, so that any number is exact as steps shrink.
        num_guided_steps: number of steps, counted from the first at a level of guidance, after which there is no more;
            between 0 and 1, a share of all steps of the run; below 0, all but so many last ones. None for no limit.
        num_jump_steps: evaluations of the flow map, uniform in the time of rectified flow, that lead from where
            guidance ends to clean data in one step of the run; None to visit the levels that are left.
        num_warm_up_steps: steps after which the best of the `num_particles`, by the value of its look-ahead, goes on
            alone; None for all to go on to the end.
        keeps_best: whether the best clean sample that a particle has looked at, be it a look-ahead or what a few-step
            model predicts, is returned where its reward exceeds that of the particle in the end. It costs a decoding
            and a reward of each step's prediction, and of the best sample once more.
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
    num_guided_steps: float | None = None
    num_jump_steps: int | None = None
    num_warm_up_steps: int | None = None
    keeps_best: bool = False

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient is {self.gradient!r}; choose one of {', '.join(GRADIENTS)}")
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
        check_counts(
            num_corrections=self.num_corrections,
            num_jump_steps=self.num_jump_steps,
            num_warm_up_steps=self.num_warm_up_steps,
        )
        steps = self.num_guided_steps
        if steps is not None and not (0 < steps < 1 or (steps != 0 and steps % 1 == 0)):
            raise ValueError(
                f"num_guided_steps is {steps}; give a number of steps, a share of all of them between 0 and 1, or "
                "minus the number of last steps to leave out"
            )

    @property
    def needs_reward_gradient(self) -> bool:
        return self.gradient in REWARD_GRADIENTS

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        # Only here: within another method the look-aheads are those of that method.
        check_comparable(self.gradient, self.posterior)
        self.check_reward(reward)

    def check_reward(self, reward: Reward) -> None:
        """Raises a `ValueError` where the gradient differentiates the reward and that has none."""
        if self.needs_reward_gradient and not reward.differentiable:
            raise ValueError(
                f"gradient is {self.gradient!r}, but reward {reward.name!r} has no gradient; "
                "use gradient='tilted_mean' with GlassPosterior(num_samples=4), or alignment 'smc' or 'best_of_n'"
            )

    def default_transition(self, model: Model) -> Transition:
        # Few noisy steps make worse images than as many of the ODE, and guided particles need not part.
        return model.stock_transition()

    def resolve(self, model: Model) -> Self:
        method = super().resolve(model)
        if self.num_jump_steps is not None and not has_map_to_data(model):
            raise ValueError(
                f"num_jump_steps is {self.num_jump_steps}, but this {model.name} model has no flow map to jump "
                "along; leave it out, or load a Diamond Map or a few-step LoRA"
            )
        return method

    def planned(self, model: TiltedModel, levels: Sequence[float]) -> tuple[Self, Sequence[float]]:
        if model.reward_scale == 0:
            # The sample is the plain one.
            return self, levels
        may_be = [index for index, level in enumerate(levels[:-1]) if self.guides_at(level)]
        guided, method = self._chosen(may_be, len(levels) - 1), self
        if may_be and not guided:
            method = replace(self, min_noise_to_signal=0.0, max_noise_to_signal=0.0)
        elif len(guided) < len(may_be):
            # Queries within the last guided step are guided too.
            end = math.nextafter(levels[guided[-1] + 1], math.inf)
            method = replace(self, min_noise_to_signal=max(self.min_noise_to_signal, end))
        if self.num_jump_steps is None or not guided or guided[-1] + 2 >= len(levels):
            return method, levels
        return method, [*levels[: guided[-1] + 2], levels[-1]]

    def _chosen(self, steps: list[int], num_steps: int) -> list[int]:
        """Which of the steps at levels of guidance are guided, of a run of so many steps."""
        count = self.num_guided_steps
        if count is None:
            return steps
        if count < 0:
            return [step for step in steps if step < num_steps + count]
        return steps[: math.ceil(count * num_steps) if count < 1 else int(count)]

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
        aim: Aim | None = None,
    ) -> LookAhead:
        """Look-aheads with the gradient in the form that `shift` takes; arguments as of `look_ahead.look_ahead`."""
        with_terms = self.scaling in TERM_SCALINGS
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
            aim=aim,
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
        count, levels = len(cloud.x) // model.num_images, (noise_to_signal, next_noise_to_signal)
        owners = model.owners(count, cloud.x.device)
        network = model.network(owners)
        if self._jumps(model, noise_to_signal):
            return replace(cloud, x=self._jump(network, cloud.x, *levels), figures={})
        needs_prediction = self.transition.needs_prediction(network)
        predicted, shift, figures = None, None, {}
        if self._guides(model, noise_to_signal):
            ahead, shift, figures = self._guide(model, cloud.x, *levels, random, needs_prediction)
            predicted = ahead.predicted
            if self.keeps_best:
                cloud = cloud.seen(ahead.samples, ahead.rewards)
        elif needs_prediction:
            predicted = network.predict(cloud.x, noise_to_signal)
        if self.keeps_best and predicted is not None and not network.predicts_mean and model.reward_scale != 0:
            cloud = cloud.seen(predicted.unsqueeze(1), model.tilt(predicted, owners, noise_to_signal).unsqueeze(1))
        if shift is not None and self._aims_by_itself:
            return replace(cloud, x=ode_step(cloud.x, predicted + shift, *levels), figures=figures)
        noise = driving_noise(random, self.transition, cloud.x, count, *levels)
        if self.transition.uses_prediction:
            predicted = predicted if needs_prediction else network.denoise(cloud.x, noise_to_signal)
            predicted = predicted if shift is None else predicted + shift
        elif shift is not None:
            # The shift enters through the noise, whose mean moves the step's as much.
            noise = noise + self.transition.tilt_gain(*levels) * shift
        tilted = self._tilted(network, model, random)
        return replace(cloud, x=self.transition.step(tilted, cloud.x, *levels, predicted, noise), figures=figures)

    @property
    def _aims_by_itself(self) -> bool:
        """Whether steps follow a velocity that is not what the model predicts: the chord of a flow map."""
        return not self.transition.uses_prediction and not self.transition.is_stochastic

    def _jumps(self, model: TiltedModel, noise_to_signal: float) -> bool:
        """Whether guidance has ended and the rest is one jump."""
        is_tilted = model.reward_scale != 0
        return is_tilted and self.num_jump_steps is not None and noise_to_signal < self.min_noise_to_signal

    def _jump(self, network: Network, x: Tensor, noise_to_signal: float, next_noise_to_signal: float) -> Tensor:
        """Along the flow map in `num_jump_steps` evaluations."""
        path = RectifiedFlowPath()
        start, end = path.time(noise_to_signal), path.time(next_noise_to_signal)
        times = torch.linspace(0, 1, self.num_jump_steps + 1, dtype=torch.float64)
        levels = [path.noise_to_signal(torch.lerp(start, end, share)) for share in times]
        for level, next_level in pairwise(levels):
            x = network.flow_map(x, level, next_level)
        return x

    def between_steps(
        self, model: TiltedModel, cloud: Cloud, num_steps: int, noise_to_signal: float, random: RandomSource
    ) -> Cloud:
        is_tilted = model.reward_scale != 0
        if num_steps != self.num_warm_up_steps or self.num_particles == 1 or not is_tilted:
            return cloud
        ahead = look_ahead(model, self.posterior, cloud.x, noise_to_signal, random.aside, with_prediction=False)
        return cloud.particles(highest(ahead.values.unflatten(0, (-1, self.num_particles)), 1))

    def start(self, model: TiltedModel, x: Tensor, num_steps: int) -> GuidedCloud:
        cloud = super().start(model, x, num_steps)
        return GuidedCloud(cloud.x, cloud.log_weights, cloud.log_evidence)

    def finish(self, model: TiltedModel, cloud: GuidedCloud, trace: Trace) -> AlignmentResult:
        if cloud.best is None:
            return super().finish(model, cloud, trace)
        owners = model.owners(len(cloud.x) // model.num_images, cloud.x.device)
        last, best = (Sample(z, model.evaluate(z, owners)) for z in (cloud.x, cloud.best))
        kept = last.improved_by(best, model.reward_scale)
        return super().finish(model, replace(cloud, x=kept.latents, final=kept.evaluation), trace)

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
    ) -> tuple[LookAhead, Tensor, dict[str, Tensor]]:
        """Estimates at particles, with what the step aims at where it uses that, its shift, and its figures."""

        def aim(network: Network, x: Tensor, level: Level) -> Tensor:
            return self.transition.aim(network, x, level, next_noise_to_signal)

        count = len(x) // model.num_images
        options = {"aim": aim if self._aims_by_itself else None, "with_samples": self.keeps_best}
        needs_aim = self._aims_by_itself or needs_prediction
        ahead = self.look_ahead(model, self.posterior, x, noise_to_signal, random, needs_aim, **options)
        shift = self.shift(ahead, noise_to_signal)
        alpha, _ = signal_and_noise(noise_to_signal)
        # Pure noise holds nothing to correct.
        for part in range(1, self.num_corrections if alpha > 0 else 1):
            share = alpha * (1 - next_noise_to_signal / noise_to_signal) * part / self.num_corrections
            moved = x + expand(share, x) * shift
            again = self.look_ahead(model, self.posterior, moved, noise_to_signal, random, False, **options)
            shift = torch.lerp(shift, self.shift(again, noise_to_signal), 1 / (part + 1))
        sizes = root_mean_square(shift).unflatten(0, (-1, count))
        return ahead, shift, {**ahead.figures(count), "gradient_norm": sizes.mean(1)}

    def _tilted(self, network: Network, model: TiltedModel, random: RandomSource) -> Network:
        """The model with `D_r` in place of `D` at the inner queries of a transition, which is handed the first one."""

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            level = float(noise_to_signal)
            if not self._guides(model, level):
                return network.denoise(x, noise_to_signal)
            ahead = self.look_ahead(model, self.posterior, x, level, random, network.predicts_mean)
            return network.mean(x, noise_to_signal, ahead.predicted) + self.shift(ahead, level)

        return replace(network, denoiser=denoise, predicts_mean=True)
