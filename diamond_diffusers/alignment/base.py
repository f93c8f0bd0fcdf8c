"""The one sampling loop, of which every alignment method is a filling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import Field, replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.conversions import WrongTypeError
from ..core.interruption import Interrupted
from ..core.interval import Interval, intervals
from ..core.model import Model
from ..core.network import Network
from ..core.typed import Typed
from ..core.wording import shown
from ..posteriors.base import PosteriorSampler
from ..rewards.base import Reward
from ..transitions.base import Transition
from ..transitions.sampled_model import SampledModel
from .cloud import Cloud
from .law import Law
from .out_of_memory import with_smaller_chunks
from .progress import InterruptedWithin, Progress, timed
from .random_source import RandomSource
from .result import AlignmentResult
from .trace import Trace, TraceStep


class Method(Typed, ABC):
    """A way to make samples obey a reward.

    Attributes:
        num_particles: particles P of each image.
        transition: how particles move; None for what suits the model.
        needs_reward: whether the method is nothing without a reward.
        needs_reward_gradient: whether it differentiates the reward.
        default_selection: which particle of an image is returned if the caller does not say.
        works_in_rounds: whether particles are clean after every stage, so that a `Watch` can look at them.
        grows: name of the field that `max_network_evaluations` enlarges; None where more of it would buy nothing.

    Example:
        A method of your own is a frozen dataclass that says how a cloud of particles moves one level on::

            @register_method("greedy")
            @dataclass(frozen=True)
            class Greedy(Method):
                num_particles: int = 4

                def step(self, law, cloud, interval, random):
                    ...
    """

    # Every method is a dataclass, though its base is none: `replace` and `fields` take it.
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    num_particles: int = 1
    transition: Transition | None = None
    needs_reward: bool = True
    needs_reward_gradient: bool = False
    default_selection: str = "sample"
    works_in_rounds: bool = False
    grows: ClassVar[str | None] = "num_particles"

    def __post_init__(self) -> None:
        check_counts(num_particles=self.num_particles)

    @abstractmethod
    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        """Moves a cloud one level on.

        Args:
            law: to sample.
            cloud: particles at the start of the interval.
            interval: the step.
            random: draws of the run.
        """

    @property
    def moves(self) -> Transition:
        """How particles move, of a method that is resolved."""
        assert self.transition is not None, "`resolve` fills in the transition, and comes before the first step"
        return self.transition

    def predicted(self, law: Law, x: Tensor, noise_to_signal: float) -> Tensor | None:
        """What the model predicts at rows `[N, ...]`, equally many of each image, where the transition needs it."""
        network = law.rows(x).network
        return network.predict(x, noise_to_signal) if self.moves.needs_prediction(network) else None

    def predicted_of(self, law: Law, cloud: Cloud, noise_to_signal: float) -> Tensor | None:
        """The same at the particles of a cloud, whose look-aheads may have brought it along."""
        return cloud.ahead.predicted if cloud.ahead else self.predicted(law, cloud.x, noise_to_signal)

    def check_moves_are_random(self, alike: str, instead: str) -> None:
        """Refuses a given transition that draws no noise.

        Args:
            alike: what would be the same with it, as the sentence has it.
            instead: name of a method that does without noise.

        Raises:
            ValueError: the transition is such a one.
        """
        if self.transition is not None and not self.moves.is_stochastic:
            raise ValueError(
                f"transition is {self.transition}, which draws no noise, so {alike} would be the same; leave it "
                f"out, or take AncestralTransition(), or alignment {instead!r}"
            )

    def moved(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        """Particles `[N, ...]` after a step of the transition, checked; arguments as of `Transition.step`.

        Raises:
            TypeError, ValueError: the transition returned something else than such particles.
        """
        moved = self.moves.step(network, x, interval, predicted, noise)
        if not isinstance(moved, Tensor) or moved.shape != x.shape:
            raise WrongTypeError(
                f"the step of {type(self.moves).__name__} returned {shown(moved)}; return particles of shape "
                f"{list(x.shape)}"
            )
        return moved

    def check(self, reward: Reward | None) -> None:
        """Raises a `ValueError` where the method cannot work with this reward; called before any expensive work."""
        if self.needs_reward and reward is None:
            raise ValueError(f"reward is None, but alignment {type(self).__name__} needs one; give reward=...")

    def default_transition(self, model: SampledModel) -> Transition:
        """How particles of this model move if the caller does not say: so that copies of one part."""
        return model.stochastic_transition()

    def uses_diamond_map(self, model: Model) -> bool:
        """Whether look-aheads or transitions evaluate the Diamond Map of this model."""
        parts = (self.transition, getattr(self, "posterior", None))
        return any(part.uses_diamond_map(model) for part in parts if part is not None)

    def resolve(self, model: SampledModel) -> Self:
        """This method with what the caller left open filled in for a model.

        Raises:
            ValueError: the model lacks what the method asks of it.
        """
        transition = self.transition or self.default_transition(model)
        if not isinstance(transition, Transition):
            raise WrongTypeError(
                f"default_transition of {type(self).__name__} returned {shown(transition)}; return a transition, such "
                "as model.stock_transition()"
            )
        transition.check(model)
        method = self.with_posterior(model)
        return method if transition is method.transition else replace(method, transition=transition)

    def with_posterior(self, model: SampledModel) -> Self:
        """This method with its posterior sampler, if it has one, checked and resolved for a model.

        Raises:
            ValueError: the model lacks what the posterior sampler asks of it.
        """
        posterior = getattr(self, "posterior", None)
        if not isinstance(posterior, PosteriorSampler):
            return self
        posterior.check(model)
        resolved = posterior.resolve(model)
        return self if resolved is posterior else replace(self, **{"posterior": resolved})

    def within(self, max_network_evaluations: int | None, max_reward_calls: int | None) -> Self:
        """This method for the budget of an image, if it is one that keeps to a budget by itself; any other as it is.

        To be overridden where a cost depends on what a run finds, so that no count can be found beforehand. Such a
        method has `grows` None within a budget of network evaluations.
        """
        return self

    def planned(self, law: Law, levels: Sequence[float]) -> tuple[Self, Sequence[float]]:
        """This method for a run over these levels, and those of them that it visits: the first ones, and the last."""
        return self, levels

    def between_steps(
        self, law: Law, cloud: Cloud, num_steps: int, noise_to_signal: float, random: RandomSource
    ) -> Cloud:
        """The cloud that goes on from a level that `num_steps` steps have led to; not called after the last."""
        return cloud

    def num_stages(self, law: Law, levels: Sequence[float]) -> int:
        """How many stages `iterate` yields over these levels."""
        return len(self.planned(law, levels)[1]) - 1

    def iterate(self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource) -> Iterator[Progress]:
        """Carries particles from pure noise to clean latents, and says after each stage where the run stands.

        A run ends early if it is not stepped any further: `Progress.result()` is what it has come to.

        Args:
            law: to sample.
            x: starting particles `[B P, ...]` in the bounded coordinate, at `levels[0]`.
            levels: falling noise-to-signal ratios; the last is the level at which `x` is taken as clean.
            random: draws of the run.
        """
        return timed(self.resolve(law.model).stages(law, x, levels, random), law.cost)

    def run(self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource) -> AlignmentResult:
        """The result of a run to its end; arguments as of `iterate`."""
        method = self.resolve(law.model)
        progress = method.at_start(law, x, levels)
        try:
            for progress in method.iterate(law, x, levels, random):  # noqa: B007 - the last one counts
                pass
            return progress.result()
        except InterruptedWithin:
            raise
        except Interrupted as interruption:
            # Only a run within another is interrupted here; the other may have nothing better to show yet.
            raise InterruptedWithin(progress) from interruption

    def stages(self, law: Law, x: Tensor, levels: Sequence[float], random: RandomSource) -> Iterator[Progress]:
        """The loop of `iterate`, of a method that is resolved."""
        method, visited = self.planned(law, levels)
        steps, trace = intervals(visited), Trace()
        cloud = method.start(law, x, len(steps))
        for index, interval in enumerate(steps):
            step = partial(method.step, law, cloud, interval, random)
            cloud = checked_cloud(method, with_smaller_chunks(law.execution, step, random), cloud)
            trace.steps.append(TraceStep(interval.start, **cloud.figures))
            if not interval.is_last and type(method).between_steps is not Method.between_steps:
                between = partial(method.between_steps, law, cloud, index + 1, interval.end, random)
                cloud = with_smaller_chunks(law.execution, between, random)
            level_index = len(levels) - 2 if interval.is_last else index
            progress = Progress(
                method, law, cloud, trace, index, len(steps), level_index, interval.end, interval.is_last, cloud.x
            )
            yield progress
            # Who looks on may have changed these.
            law, cloud = progress.law, progress.cloud

    def at_start(self, law: Law, x: Tensor, levels: Sequence[float]) -> Progress:
        """Where a run stands before its first stage; arguments as of `iterate`."""
        num_stages = self.num_stages(law, levels)
        return Progress(self, law, self.start(law, x, num_stages), Trace(), -1, num_stages, 0, levels[0], False, x)

    def start(self, law: Law, x: Tensor, num_steps: int) -> Cloud:
        """The particles at the first level of a run of `num_steps`, equally weighted."""
        log_weights = torch.zeros(law.num_images, self.num_particles, dtype=torch.float64)
        return Cloud(x, log_weights, log_weights.new_zeros(law.num_images))

    def replace_particles(self, cloud: Cloud, x: Tensor) -> Cloud:
        """The cloud with other particles in place of its own; what was known of those is forgotten."""
        return replace(cloud, x=x, ahead=None, final=None, values=None)

    def finish(self, law: Law, cloud: Cloud, trace: Trace) -> AlignmentResult:
        """Scores the final particles, unless that is done already, and normalises their weights."""
        shape = cloud.log_weights.shape
        rewards, terms, images, violation = None, {}, None, None
        if law.reward is not None:
            final = (cloud.final or law.rows(cloud.x).evaluate(cloud.x)).map(lambda rows: rows.unflatten(0, shape))
            rewards, terms, images, violation = final.total, final.terms, final.images, final.violation
        return AlignmentResult(
            latents=cloud.x.unflatten(0, shape),
            log_weights=torch.log_softmax(cloud.log_weights, 1),
            rewards=rewards,
            reward_terms=terms,
            images=images,
            log_evidence=None,
            trace=trace,
            scales=law.scales(),
            violation=violation,
        )


def checked_cloud(method: Method, cloud: Cloud, former: Cloud) -> Cloud:
    """The cloud that the step of a method, perhaps of a user's own, has returned.

    Raises:
        WrongTypeError: it is none, or has other particles than as many of the same shape.
    """
    name = type(method).__name__
    if not isinstance(cloud, Cloud):
        raise WrongTypeError(f"the step of {name} returned {shown(cloud)}; return a Cloud, such as replace(cloud, x=x)")
    if not isinstance(cloud.x, Tensor) or cloud.x.shape[1:] != former.x.shape[1:]:
        raise WrongTypeError(
            f"the step of {name} returned a cloud with {shown(cloud.x)} as x; leave each particle of shape "
            f"{list(former.x.shape[1:])}"
        )
    return cloud
