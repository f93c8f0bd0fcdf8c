"""One budget for all images of a run: what an image that is good enough has left goes to those that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from ..core.cost import Cost
from ..rewards.stages import stages_of
from .base import Method
from .budget import Budget, EmptyModel, cost_of_image, empty_law
from .cloud import Cloud
from .evaluation import Evaluation
from .law import Law
from .progress import Progress
from .random_source import RandomSource
from .trace import Trace, TraceStep

Passes = Callable[[int, Progress], bool]
"""Whether an image, by its number, is good enough as its run stands after a round."""


@dataclass
class RoundPrices:
    """What the first rounds of an image cost, counted by running them on an empty model (`budget.cost_of_image`).

    Args:
        method: in rounds.
        law: what it will run on; nothing of it is evaluated.
        levels: of the run.
    """

    method: Method
    law: Law
    levels: Sequence[float]
    _known: list[Cost] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        empty = empty_law(self.law, EmptyModel)
        if (staged := stages_of(self.law.reward)) is not None:
            empty.cost.reward_calls += staged.num_scores(self.method.num_particles)
        self._cost = empty.cost
        self._known.append(replace(empty.cost))
        x = torch.zeros(self.method.num_particles, 1)
        self._rounds = self.method.iterate(empty, x, self.levels, RandomSource(torch.Generator(), 1))

    def of(self, num_rounds: int) -> Cost | None:
        """The price of so many rounds, and of what follows the last; None where the method has fewer."""
        while len(self._known) <= num_rounds:
            with torch.no_grad():
                if next(self._rounds, None) is None:
                    return None
            self._known.append(replace(self._cost))
        return self._known[num_rounds]


@dataclass(frozen=True)
class SharedRounds:
    """The rounds of a method, of which each image takes as many as it needs, within one budget for all.

    Each image is a run of its own, with its own generator. In each turn, every image that is not good enough yet takes
    a round of its run, in the order of the batch, as far as the budget of all pays for it. An image after n rounds is
    therefore what the method makes of it in n rounds, whatever else is in the batch: the others only decide about n.

    Args:
        method: in rounds, with the count that would be each image's own part.
        law: of all images.
        levels: of the run.
        budget: of one image; that of all is so many times as large. Without limits it is what the method costs.

    Raises:
        ValueError: one image's part does not pay for a single round.
    """

    method: Method
    law: Law
    levels: Sequence[float]
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not (is_given := self.budget != Budget()):
            cost = cost_of_image(self.method, self.law, self.levels)
            object.__setattr__(self, "budget", Budget(cost.equivalent_evaluations, cost.reward_calls))
        first = self.prices.of(1)
        assert first is not None, "a method in rounds has one"
        for name, limit, least in self.budget.exceeded(first):
            source = "raise it" if is_given else f"that is what the method costs: give {name}"
            raise ValueError(
                f"a budget is shared round by round, but one round of {type(self.method).__name__} takes {least} of "
                f"{name}, of which an image has {limit}; {source}, or make rounds smaller, as by round_size=1"
            )

    @cached_property
    def whole(self) -> Method:
        """The method with the count that it would have if all of the budget went to one image."""
        assert self.method.grows is not None, "`SharedBudget` has looked"
        count: int = getattr(self.method, self.method.grows)
        return replace(self.method, **{self.method.grows: count * self.law.num_images})

    @cached_property
    def prices(self) -> RoundPrices:
        """Of the rounds of each image, which all cost alike."""
        return RoundPrices(self.whole, self.law, self.levels)

    @property
    def num_turns(self) -> int:
        """The most that a run can take."""
        return self.whole.num_stages(self.law, self.levels)

    def start(self, law: Law, x: Tensor, random: RandomSource) -> list[ImageRounds]:
        """The runs of the images, before their first rounds.

        Args:
            law: of all images, as of this object but for what is known of it only now, such as its scales.
            x: starting particles `[B P, ...]`.
            random: draws of the run.
        """
        starts, sources = x.unflatten(0, (law.num_images, -1)).unbind(0), random.of_each_image()
        laws = [law.of_images(torch.tensor([image])) for image in range(law.num_images)]
        return [
            ImageRounds(image, self.whole.iterate(alone, start, self.levels, source))
            for image, (alone, start, source) in enumerate(zip(laws, starts, sources, strict=True))
        ]

    def iterate(self, law: Law, images: Sequence[ImageRounds], passes: Passes) -> Iterator[Progress]:
        """The run of all images, turn after turn, as of `Method.iterate`.

        Args:
            law: of all images.
            images: from `start`, whose rounds it takes.
            passes: asked after each round of an image.
        """
        prices, trace = self.prices, Trace()
        total = self.budget.of_images(len(images))

        def goes_on(image: ImageRounds) -> bool:
            if image.has_passed or (price := prices.of(image.num_rounds + 1)) is None:
                return False
            others = [known for other in images if other is not image and (known := prices.of(other.num_rounds))]
            return not any(total.exceeded(summed([price, *others])))

        for index in range(self.num_turns):
            for image in images:
                if goes_on(image):
                    image.step(law.cost, passes)
            is_last = not any(map(goes_on, images))
            progress = self._joined(law, images, trace, index, index + 1 if is_last else self.num_turns)
            yield progress
            if progress.law is not law:
                raise ValueError(
                    f"progress.law was replaced, but the rounds of {type(self.method).__name__} are compared under one "
                    "law; begin another run"
                )
            if is_last:
                return

    def _joined(self, law: Law, images: Sequence[ImageRounds], trace: Trace, index: int, num_stages: int) -> Progress:
        """Where the run of all images stands."""
        latest = [image.latest for image in images]
        trace.steps.append(joined_step([progress.trace.steps[-1] for progress in latest]))
        return replace(
            latest[0],
            method=self.method,
            law=law,
            cloud=joined_cloud([progress.cloud for progress in latest]),
            trace=trace,
            index=index,
            num_stages=num_stages,
            drawn=torch.cat([progress.drawn for progress in latest]),
        )


@dataclass
class ImageRounds:
    """The rounds of one image so far.

    Attributes:
        image: its number.
        rounds: of its run.
        num_rounds: that it has taken.
        has_passed: whether it is good enough.
        cost: what its rounds have cost.
        progress: where its run stands; None before the first round.
    """

    image: int
    rounds: Iterator[Progress]
    num_rounds: int = 0
    has_passed: bool = False
    cost: Cost = field(default_factory=Cost)
    progress: Progress | None = None

    @property
    def latest(self) -> Progress:
        """Where its run stands."""
        assert self.progress is not None, "every image takes a round in the first turn"
        return self.progress

    def step(self, counted: Cost, passes: Passes) -> None:
        """Takes a round, whose cost is counted in that of the run."""
        before = replace(counted)
        self.progress = next(self.rounds)
        self.num_rounds += 1
        self.cost = summed([self.cost, difference(counted, before)])
        self.has_passed = passes(self.image, self.progress)


def summed(costs: Sequence[Cost]) -> Cost:
    """The sum of several costs."""
    return Cost(**{each.name: sum(getattr(cost, each.name) for cost in costs) for each in fields(Cost)})


def difference(after: Cost, before: Cost) -> Cost:
    """What has been added to a cost."""
    return Cost(**{each.name: getattr(after, each.name) - getattr(before, each.name) for each in fields(Cost)})


def joined_cloud(clouds: Sequence[Cloud]) -> Cloud:
    """The clouds of one image each as that of all, each with as many particles."""

    values = [cloud.values for cloud in clouds if cloud.values is not None]
    finals = [cloud.final for cloud in clouds if cloud.final is not None]
    final: Evaluation | None = None
    if len(finals) == len(clouds):
        final = finals[0].map(lambda *parts: torch.cat(parts), *finals[1:])
    return replace(
        clouds[0],
        x=torch.cat([cloud.x for cloud in clouds]),
        log_weights=torch.cat([cloud.log_weights for cloud in clouds]),
        log_evidence=torch.cat([cloud.log_evidence for cloud in clouds]),
        values=torch.cat(values) if len(values) == len(clouds) else None,
        ahead=None,
        final=final,
        figures={},
    )


def joined_step(steps: Sequence[TraceStep]) -> TraceStep:
    """The last steps of several images as one of all; an image that has stopped keeps its figures."""
    joined = {}
    for each in fields(TraceStep):
        parts = [getattr(step, each.name) for step in steps]
        if each.name != "noise_to_signal" and all(part is not None for part in parts):
            joined[each.name] = torch.cat(parts)
    return TraceStep(steps[0].noise_to_signal, **joined)
