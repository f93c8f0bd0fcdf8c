"""Guidance: sampling with the denoiser of the reward-tilted law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from ...core.checks import check_counts
from ...core.flow_map import has_map_to_data
from ...core.interval import Interval
from ...core.levels import Level, RectifiedFlowPath, ode_step, signal_and_noise
from ...core.network import Network
from ...core.tensors import expand
from ...posteriors.base import PosteriorSampler
from ...posteriors.denoiser import DenoiserPoint
from ...rewards.base import Reward
from ...transitions.base import Transition
from ...transitions.sampled_model import SampledModel
from ..base import Method
from ..cloud import Cloud
from ..guide import Guide
from ..law import Law
from ..look_ahead import LookAhead, look_ahead
from ..look_ahead_search import highest
from ..noise_rounds import Sample
from ..random_source import RandomSource, driving_noise
from ..result import AlignmentResult
from ..scalings import root_mean_square
from ..trace import Trace
from . import METHODS


@dataclass(frozen=True, kw_only=True)
class GuidedCloud(Cloud):
    """A cloud that remembers the best clean sample that each particle has looked at.

    Attributes:
        best: these samples, `[B P, ...]`; None before there are any.
        best_values: their final values, `[B P]`.
    """

    best: Tensor | None = None
    best_values: Tensor | None = None

    def seen(self, samples: Tensor, values: Tensor) -> GuidedCloud:
        """This cloud after clean samples `[B P, K, ...]` of final values `[B P, K]` were looked at."""
        if self.best is not None and self.best_values is not None:
            samples = torch.cat([self.best.unsqueeze(1), samples], 1)
            values = torch.cat([self.best_values.unsqueeze(1), values], 1)
        index = values.argmax(1)
        rows = torch.arange(len(index), device=index.device)
        return replace(self, best=samples[rows, index], best_values=values[rows, index])

    def particles(self, index: Tensor) -> GuidedCloud:
        """The particles `[B n]` of the cloud, n of each image, equally weighted."""
        best = None if self.best is None else self.best[index]
        best_values = None if self.best_values is None else self.best_values[index]
        weights = self.log_weights.new_zeros(len(self.log_weights), len(index) // len(self.log_weights))
        values = None if self.values is None else self.values.flatten()[index].reshape(weights.shape)
        return replace(self, x=self.x[index], log_weights=weights, values=values, best=best, best_values=best_values)


@METHODS.register("guidance")
@dataclass(frozen=True)
class Guidance(Method):
    """Replaces the denoiser by the reward-tilted one, `D_r = D + strength * kappa^2 grad_y V`: see `Guide`.

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
        guide: the gradient, its strength, scaling, limits and levels.
        transition: how particles move; None for how the stock pipeline moves them. Transitions of several inner steps
            are guided in each of them. One that does not use the predicted sample (`DiamondTransition`) is guided
            through the mean of its driving noise, which is the same as the steps shrink, and needs no evaluation of the
            base model; one without noise (`FlowMapTransition`) is moved as far as the step of the ODE would be.
        num_particles: guided samples of each image, of which the best is returned.
        num_corrections: parts J of a step's guidance, each with look-aheads of its own at the state that the parts
            before it have reached. So are the inner iterations of FMRG, but their shifts add up: multiply
            the guide's strength by J for as strong a pull. Here their mean is taken and each moves the state as far as
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

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> pipe("a red star", reward="miniature", alignment=Guidance(guide=Guide("pathwise")), num_inference_steps=2)
    """

    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    guide: Guide = field(default_factory=Guide)
    transition: Transition | None = None
    num_particles: int = 1
    num_corrections: int = 1
    num_guided_steps: float | None = None
    num_jump_steps: int | None = None
    num_warm_up_steps: int | None = None
    keeps_best: bool = False

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
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
    def needs_reward_gradient(self) -> bool:  # type: ignore[override]
        return self.guide.needs_reward_gradient

    def check(self, reward: Reward | None) -> None:
        super().check(reward)
        self.guide.check_comparable(self.posterior)
        if reward is not None:
            self.guide.check_reward(reward)

    def default_transition(self, model: SampledModel) -> Transition:
        # Few noisy steps make worse images than as many of the ODE, and guided particles need not part.
        return model.stock_transition()

    def resolve(self, model: SampledModel) -> Self:
        method = super().resolve(model)
        if self.num_jump_steps is not None and not has_map_to_data(model):
            raise ValueError(
                f"num_jump_steps is {self.num_jump_steps}, but this {model.name} model has no flow map to jump "
                "along; leave it out, or load a Diamond Map or a few-step LoRA"
            )
        return method

    def planned(self, law: Law, levels: Sequence[float]) -> tuple[Self, Sequence[float]]:
        if not law.is_tilted:
            # The sample is the plain one.
            return self, levels
        may_be = [index for index, level in enumerate(levels[:-1]) if self.guide.acts_at(level)]
        guided, guide = self._chosen(may_be, len(levels) - 1), self.guide
        if may_be and not guided:
            guide = replace(guide, min_noise_to_signal=0.0, max_noise_to_signal=0.0)
        elif len(guided) < len(may_be):
            # Queries within the last guided step are guided too.
            end = math.nextafter(levels[guided[-1] + 1], math.inf)
            guide = replace(guide, min_noise_to_signal=max(guide.min_noise_to_signal, end))
        method = self if guide is self.guide else replace(self, guide=guide)
        if self.num_jump_steps is None:
            return method, levels
        if not guided:
            # Guidance that never begins does not end in a jump.
            return replace(method, num_jump_steps=None), levels
        return method, [*levels[: guided[-1] + 2], levels[-1]] if guided[-1] + 2 < len(levels) else levels

    def _chosen(self, steps: list[int], num_steps: int) -> list[int]:
        """Which of the steps at levels of guidance are guided, of a run of so many steps."""
        count = self.num_guided_steps
        if count is None:
            return steps
        if count < 0:
            return [step for step in steps if step < num_steps + count]
        # Shares of whole steps are not raised by their rounding: 0.55 of 100 steps are 55.
        return steps[: math.ceil(round(count * num_steps, 6)) if count < 1 else int(count)]

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> GuidedCloud:
        assert isinstance(cloud, GuidedCloud), "`start` makes one"
        rows, count = law.rows(cloud.x), len(cloud.x) // law.num_images
        network = rows.network
        if self._jumps(law, interval.start):
            return replace(cloud, x=self._jump(network, cloud.x, interval), ahead=None, figures={})
        needs_prediction = self.moves.needs_prediction(network)
        predicted: Tensor | None = None
        shift: Tensor | None = None
        figures: dict[str, Tensor] = {}
        if self._guides(law, interval.start):
            ahead, shift, figures = self._guided(law, cloud.x, interval, random, needs_prediction)
            predicted, cloud = ahead.predicted, replace(cloud, values=ahead.values.unflatten(0, (-1, count)))
            if self.keeps_best:
                assert ahead.samples is not None and ahead.ranks is not None, "`_guided` asks for both"
                cloud = cloud.seen(ahead.samples, ahead.ranks)
        elif needs_prediction:
            predicted = network.predict(cloud.x, interval.start)
        if self.keeps_best and predicted is not None and not network.predicts_mean and law.is_tilted:
            _, ranks = rows.tilt_and_rank(predicted, interval.start)
            cloud = cloud.seen(predicted.unsqueeze(1), ranks.unsqueeze(1))
        if shift is not None and self._aims_by_itself:
            assert predicted is not None, "`_guided` asks to what the step aims"
            return replace(cloud, x=ode_step(cloud.x, predicted + shift, interval.start, interval.end), figures=figures)
        noise = driving_noise(random, self.moves, cloud.x, count, interval)
        if self.moves.uses_prediction:
            predicted = predicted if needs_prediction else network.denoise(cloud.x, interval.start)
            assert predicted is not None, "it was needed, so that it was made"
            predicted = predicted if shift is None else predicted + shift
        elif shift is not None:
            # The shift enters through the noise, whose mean moves the step's as much.
            noise = noise + self.moves.tilt_gain(interval) * shift
        tilted = self._tilted(network, law, random)
        return replace(cloud, x=self.moved(tilted, cloud.x, interval, predicted, noise), figures=figures)

    @property
    def _aims_by_itself(self) -> bool:
        """Whether steps follow a velocity that is not what the model predicts: the chord of a flow map."""
        return not self.moves.uses_prediction and not self.moves.is_stochastic

    def _jumps(self, law: Law, noise_to_signal: float) -> bool:
        """Whether guidance has ended and the rest is one jump."""
        return law.is_tilted and self.num_jump_steps is not None and noise_to_signal < self.guide.min_noise_to_signal

    def _jump(self, network: Network, x: Tensor, interval: Interval) -> Tensor:
        """Along the flow map in `num_jump_steps` evaluations."""
        path = RectifiedFlowPath()
        start, end = path.time(interval.start), path.time(interval.end)
        assert self.num_jump_steps is not None, "`_jumps` has looked"
        times = torch.linspace(0, 1, self.num_jump_steps + 1, dtype=torch.float64)
        levels = [path.noise_to_signal(torch.lerp(start, end, share)) for share in times]
        for level, next_level in pairwise(levels):
            x = network.flow_map(x, level, next_level)
        return x

    def between_steps(
        self, law: Law, cloud: Cloud, num_steps: int, noise_to_signal: float, random: RandomSource
    ) -> GuidedCloud:
        assert isinstance(cloud, GuidedCloud), "`start` makes one"
        if num_steps != self.num_warm_up_steps or self.num_particles == 1 or not law.is_tilted:
            return cloud
        ahead = look_ahead(law, self.posterior, cloud.x, noise_to_signal, random.aside, with_prediction=False)
        return cloud.particles(highest(ahead.values.unflatten(0, (-1, self.num_particles)), 1))

    def start(self, law: Law, x: Tensor, num_steps: int) -> GuidedCloud:
        cloud = super().start(law, x, num_steps)
        return GuidedCloud(cloud.x, cloud.log_weights, cloud.log_evidence)

    def replace_particles(self, cloud: Cloud, x: Tensor) -> GuidedCloud:
        # The best sample was seen from the old particle, and has nothing of what a caller changed.
        replaced = super().replace_particles(cloud, x)
        assert isinstance(replaced, GuidedCloud), "`start` makes one"
        return replace(replaced, best=None, best_values=None)

    def finish(self, law: Law, cloud: Cloud, trace: Trace) -> AlignmentResult:
        assert isinstance(cloud, GuidedCloud), "`start` makes one"
        if cloud.best is None:
            return super().finish(law, cloud, trace)
        last, best = (Sample(z, law.rows(z).evaluate(z)) for z in (cloud.x, cloud.best))
        kept = last.improved_by(best, law)
        return super().finish(law, replace(cloud, x=kept.latents, final=kept.evaluation), trace)

    def _guides(self, law: Law, noise_to_signal: float) -> bool:
        # Without a reward the sample is the plain one, and draws what that draws.
        return self.guide.acts_at(noise_to_signal) and law.is_tilted

    def _guided(
        self, law: Law, x: Tensor, interval: Interval, random: RandomSource, needs_prediction: bool
    ) -> tuple[LookAhead, Tensor, dict[str, Tensor]]:
        """Estimates at particles, with what the step aims at where it uses that, its shift, and its figures."""

        def aim(network: Network, x: Tensor, level: Level) -> Tensor:
            return self.moves.aim(network, x, level, interval.end)

        count, level = len(x) // law.num_images, interval.start
        needs_aim = self._aims_by_itself or needs_prediction
        drawn = partial(
            self.guide.look_ahead,
            law,
            self.posterior,
            noise_to_signal=level,
            random=random,
            with_samples=self.keeps_best,
            aim=aim if self._aims_by_itself else None,
        )
        ahead = drawn(x=x, with_prediction=needs_aim)
        shift = self.guide.shift(ahead, level)
        alpha, _ = signal_and_noise(level)
        # Pure noise holds nothing to correct.
        for part in range(1, self.num_corrections if alpha > 0 else 1):
            share = alpha * (1 - interval.end / level) * part / self.num_corrections
            again = drawn(x=x + expand(share, x) * shift, with_prediction=False)
            shift = torch.lerp(shift, self.guide.shift(again, level), 1 / (part + 1))
        sizes = root_mean_square(shift).unflatten(0, (-1, count))
        return ahead, shift, {**ahead.figures(count), "gradient_norm": sizes.mean(1)}

    def _tilted(self, network: Network, law: Law, random: RandomSource) -> Network:
        """The model with `D_r` in place of `D` at the inner queries of a transition, which is handed the first one."""

        def denoise(x: Tensor, noise_to_signal: Level) -> Tensor:
            level = float(noise_to_signal)
            if not self._guides(law, level):
                return network.denoise(x, noise_to_signal)
            needs_prediction = network.predicts_mean
            ahead = self.guide.look_ahead(law, self.posterior, x, level, random, with_prediction=needs_prediction)
            return network.mean(x, noise_to_signal, ahead.predicted) + self.guide.shift(ahead, level)

        return replace(network, denoiser=denoise, predicts_mean=True)
