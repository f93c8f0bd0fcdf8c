"""The one sampling loop, of which every alignment method is a filling."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.model import Model
from ..posteriors.base import PosteriorSampler
from ..rewards.base import Reward
from ..transitions.base import Transition
from .law import Evaluation, TiltedModel
from .look_ahead import COMPARING_GRADIENTS, LookAhead
from .random_source import RandomSource
from .smc_parts.resampling import invert, uniform
from .trace import Trace, TraceStep

FINAL_SELECTIONS = ("sample", "heaviest", "best", "all")

StepCallback = Callable[[int, Tensor, int], Tensor | None]
"""Gets the number of the call, the particles `[B P, ...]`, and the index of the level that they have come from.

Returns replaced particles, or None to leave them; raises `RunEnded` to end the run.
"""


class RunEnded(Exception):
    """What a `StepCallback` raises to end a run early.

    Args:
        particles: replace the run's own `[B P, ...]`; None to leave them.
    """

    def __init__(self, particles: Tensor | None = None) -> None:
        super().__init__("a callback ended the run")
        self.particles = particles


@dataclass(frozen=True)
class Cloud:
    """`P` particles of each of `B` images at one level, image after image.

    Attributes:
        x: `[B P, ...]` in the bounded coordinate.
        log_weights: `[B, P]` float64, unnormalised.
        log_evidence: `[B]`, gathered at resamplings.
        ahead: estimates at `x`; None where they are still to be made.
        final: the decoded and scored `x` at the last level, where a method has made it.
        figures: what the last step recorded for the trace.
    """

    x: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ahead: LookAhead | None = None
    final: Evaluation | None = None
    figures: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class AlignmentResult:
    """What a method returns.

    Attributes:
        latents: clean latents `[B, P, ...]`.
        log_weights: `[B, P]`, normalised per image.
        rewards: `[B, P]`, unscaled; None without a reward.
        reward_terms: each term of the reward, `[B, P]`.
        images: the final images `[B, P, 3, H, W]` in [0, 1]; None without a reward, for which nothing is decoded.
        log_evidence: estimate of `log E[exp(reward_scale * reward)]`, `[B]`, for methods that have one; under the law
            that their transitions sample.
        trace: figures of each step.
        reward_scale: multiplied the reward: the best particle is that of the highest product, the first of equals.
    """

    latents: Tensor
    log_weights: Tensor
    rewards: Tensor | None
    reward_terms: dict[str, Tensor]
    images: Tensor | None
    log_evidence: Tensor | None
    trace: Trace
    reward_scale: float = 1.0

    def select(self, final_selection: str, random: RandomSource) -> Tensor:
        """Indices `[B, n]` of the particles to return: one drawn by weight, the heaviest, the best, or all."""
        if final_selection == "all":
            return torch.arange(self.log_weights.shape[1]).expand(self.log_weights.shape)
        if final_selection == "heaviest":
            return self.log_weights.cpu().argmax(1, keepdim=True)
        if final_selection == "best" and self.rewards is not None:
            return (self.reward_scale * self.rewards).cpu().argmax(1, keepdim=True)
        weights = self.log_weights.exp().cpu()
        if weights.shape[1] == 1:
            return torch.zeros(weights.shape, dtype=torch.long)
        # Aside, so that the next call starts from the noise that it would after plain sampling.
        return torch.stack([invert(row, uniform(1, random.aside.of_image(i))) for i, row in enumerate(weights)])


class Method(ABC):
    """A way to make samples obey a reward.

    Attributes:
        num_particles: particles P of each image.
        transition: how particles move; None for what suits the model.
        needs_reward: whether the method is nothing without a reward.
        needs_reward_gradient: whether it differentiates the reward.
        default_selection: which particle of an image is returned if the caller does not say.
        grows: the count that a budget of network evaluations sets; None where more of it would buy nothing.
    """

    num_particles: int = 1
    transition: Transition | None = None
    needs_reward: bool = True
    needs_reward_gradient: bool = False
    default_selection: str = "sample"
    grows: str | None = "num_particles"

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)
        check_part("posterior", getattr(self, "posterior", None), PosteriorSampler, "GlassPosterior()")
        check_part("transition", self.transition, Transition, "GlassTransition()")

    @abstractmethod
    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        """Moves a cloud one level on."""

    def check(self, reward: Reward | None) -> None:
        """Raises a `ValueError` where the method cannot work with this reward; called before any expensive work."""
        if self.needs_reward and reward is None:
            raise ValueError(f"reward is None, but alignment {type(self).__name__} needs one; give reward=...")

    def default_transition(self, model: Model) -> Transition:
        """How particles of this model move if the caller does not say: so that copies of one part."""
        return model.stochastic_transition()

    def uses_diamond_map(self, model: Model) -> bool:
        """Whether look-aheads or transitions evaluate the Diamond Map of this model."""
        parts = (self.transition, getattr(self, "posterior", None))
        return any(part.uses_diamond_map(model) for part in parts if part is not None)

    def resolve(self, model: Model) -> Self:
        """This method with what the caller left open filled in for a model.

        Raises:
            ValueError: the model lacks what the method asks of it.
        """
        transition = self.transition or self.default_transition(model)
        transition.check(model)
        if isinstance(posterior := getattr(self, "posterior", None), PosteriorSampler):
            posterior.check(model)
        return self if transition is self.transition else replace(self, transition=transition)

    def planned(self, model: TiltedModel, levels: Sequence[float]) -> tuple[Self, Sequence[float]]:
        """This method for a run over these levels, and those of them that it visits: the first ones, and the last."""
        return self, levels

    def between_steps(
        self, model: TiltedModel, cloud: Cloud, num_steps: int, noise_to_signal: float, random: RandomSource
    ) -> Cloud:
        """The cloud that goes on from a level that `num_steps` steps have led to; not called after the last."""
        return cloud

    def num_callbacks(self, num_steps: int) -> int:
        """How often a run of so many steps calls `on_step`."""
        return num_steps

    def run(
        self,
        model: TiltedModel,
        x: Tensor,
        levels: Sequence[float],
        random: RandomSource,
        on_step: StepCallback | None = None,
    ) -> AlignmentResult:
        """Carries particles from pure noise to clean latents.

        Args:
            model: the law to sample.
            x: starting particles `[B P, ...]` in the bounded coordinate, at `levels[0]`.
            levels: falling noise-to-signal ratios; the last is the level at which `x` is taken as clean.
            random: draws of the run.
            on_step: called after each step; what it raises, but for `RunEnded`, ends the run as an error.
        """
        started = time.perf_counter()
        method, visited = self.resolve(model.family).planned(model, levels)
        cloud = method.start(model, x, len(visited) - 1)
        trace = Trace()
        for index, (kappa, kappa_next) in enumerate(pairwise(visited)):
            is_last = index == len(visited) - 2
            cloud = method.step(model, cloud, kappa, kappa_next, random, is_last)
            trace.steps.append(TraceStep(kappa, **cloud.figures))
            if not is_last:
                cloud = method.between_steps(model, cloud, index + 1, kappa_next, random)
            try:
                replaced = on_step(index, cloud.x, len(levels) - 2 if is_last else index) if on_step else None
            except RunEnded as ended:
                cloud = cloud if ended.particles is None else method.replace_particles(cloud, ended.particles)
                break
            if replaced is not None:
                cloud = method.replace_particles(cloud, replaced)
        result = method.finish(model, cloud, trace)
        model.cost.seconds += time.perf_counter() - started
        return result

    def start(self, model: TiltedModel, x: Tensor, num_steps: int) -> Cloud:
        """The particles at the first level of a run of `num_steps`, equally weighted."""
        log_weights = torch.zeros(model.num_images, self.num_particles, dtype=torch.float64, device=x.device)
        return Cloud(x, log_weights, log_weights.new_zeros(model.num_images))

    def replace_particles(self, cloud: Cloud, x: Tensor) -> Cloud:
        """The cloud with particles from a callback in place of its own; what was known of those is forgotten."""
        return replace(cloud, x=x, ahead=None, final=None)

    def finish(self, model: TiltedModel, cloud: Cloud, trace: Trace) -> AlignmentResult:
        """Scores the final particles, unless that is done already, and normalises their weights."""
        shape = cloud.log_weights.shape
        rewards, terms, images = None, {}, None
        if model.reward is not None:
            final = cloud.final or model.evaluate(cloud.x, model.owners(shape[1], cloud.x.device))
            rewards = final.total.reshape(shape)
            terms = {name: term.reshape(shape) for name, term in final.terms.items()}
            images = final.images.unflatten(0, shape)
        return AlignmentResult(
            latents=cloud.x.unflatten(0, shape),
            log_weights=torch.log_softmax(cloud.log_weights, 1),
            rewards=rewards,
            reward_terms=terms,
            images=images,
            log_evidence=None,
            trace=trace,
            reward_scale=model.reward_scale,
        )


def check_part(name: str, part: object, kind: type, example: str) -> None:
    """Raises a `TypeError` for a part of a method that is given and is no object of its kind."""
    if part is not None and not isinstance(part, kind):
        raise TypeError(f"{name} is {part!r}; give an object, such as {example}")


def check_comparable(gradient: str, posterior: PosteriorSampler) -> None:
    """Raises a `ValueError` for a gradient that compares look-aheads where there is one."""
    if gradient in COMPARING_GRADIENTS and posterior.num_samples < 2:
        raise ValueError(
            f"gradient is {gradient!r}, which compares look-aheads, but the posterior draws "
            f"{posterior.num_samples}; take GlassPosterior(num_samples=4), on the command line "
            "--posterior glass --num-lookaheads 4, or gradient='pathwise'"
        )
