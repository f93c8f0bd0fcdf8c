"""How much of a method a budget of network evaluations or of the reward's calls pays for."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from operator import attrgetter

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.cost import Cost
from ..core.levels import Level
from ..core.model import Conditions
from ..rewards.base import Reward
from ..rewards.stages import stages_of
from ..transitions.base import Transition
from ..transitions.sampled_model import SampledModel
from .base import Method
from .law import Law, ScoreModel
from .random_source import RandomSource

logger = logging.getLogger(__name__)

MANY_SCORES = 200
"""Scores of one image, above which a run says before it starts how many there will be."""


@dataclass(frozen=True)
class Budget:
    """The most that sampling one image may cost.

    Args:
        max_network_evaluations: an evaluation under classifier-free guidance counts 2 and a backward pass 2
            (`Cost.equivalent_evaluations`); None for no limit.
        max_reward_calls: images that the reward scores, look-aheads among them; None for no limit. What a call spends
            beside its sampling does not count: its trial of the reward, a plan for memory, the plain samples of a scale
            that is to be found, and calls that are repeated because the reward has failed.

    Raises:
        ValueError, TypeError: a limit is no whole number of at least 1.

    Example:
        >>> list(Budget(max_reward_calls=16).exceeded(Cost(network_evaluations=400, reward_calls=20)))
        [('max_reward_calls', 16, 20)]
    """

    max_network_evaluations: int | None = None
    max_reward_calls: int | None = None

    def __post_init__(self) -> None:
        check_counts(**asdict(self))

    def exceeded(self, cost: Cost) -> Iterator[tuple[str, int, int]]:
        """Each limit that the cost of an image exceeds: its name, the limit, and what was spent."""
        for name, limit, spent_of in self._limits():
            if (spent := spent_of(cost)) > limit:
                yield name, limit, spent

    def of_images(self, count: int) -> Budget:
        """The budget of so many images together."""
        limits = {name: None if limit is None else limit * count for name, limit in asdict(self).items()}
        return Budget(**limits)

    def largest(self, cost_of: Callable[[int], Cost]) -> int:
        """The largest size whose cost is within all limits, or 1 if none is.

        Args:
            cost_of: the cost of each size, which is at least 1; it falls nowhere.

        Raises:
            ValueError: nothing that is limited rises with the size.
        """
        return largest_within([(limit, _composed(spent_of, cost_of)) for _, limit, spent_of in self._limits()])

    def is_spent_by(self, less: Cost, more: Cost) -> bool:
        """Whether anything that is limited rises from one cost to another."""
        return any(spent_of(more) > spent_of(less) for *_, spent_of in self._limits())

    def _limits(self) -> Iterator[tuple[str, int, Callable[[Cost], int]]]:
        """What is limited: its name, the limit, and how much of it a cost has spent."""
        if self.max_network_evaluations is not None:
            yield "max_network_evaluations", self.max_network_evaluations, attrgetter("equivalent_evaluations")
        if self.max_reward_calls is not None:
            yield "max_reward_calls", self.max_reward_calls, attrgetter("reward_calls")


def _composed(spent_of: Callable[[Cost], int], cost_of: Callable[[int], Cost]) -> Callable[[int], int]:
    return lambda size: spent_of(cost_of(size))


def fit_to_budget(
    alignment: Method,
    law: Law,
    levels: Sequence[float],
    max_network_evaluations: int | None = None,
    max_reward_calls: int | None = None,
) -> Method:
    """The method with the largest count (`alignment.grows`) whose cost of one image is within a budget.

    It is never exceeded, and one more of the count would exceed it. A method whose count buys nothing stays as it is.

    Args:
        alignment: its own count is replaced.
        law: what it will run on; nothing of it is evaluated.
        levels: of the run.
        max_network_evaluations: the budget of an image, as of `Budget`.
        max_reward_calls: likewise.

    Raises:
        ValueError: the budget is too small for the method.
    """
    budget = Budget(max_network_evaluations, max_reward_calls)
    alignment = alignment.within(max_network_evaluations, max_reward_calls)

    @cache
    def cost_of(size: int) -> Cost:
        sized = alignment if alignment.grows is None else replace(alignment, **{alignment.grows: size})
        return cost_of_image(sized, law, levels)

    for name, limit, least in budget.exceeded(cost_of(1)):
        takes = f"takes at least {least}" if name == "max_network_evaluations" else f"needs at least {least} scores"
        raise ValueError(
            f"{name} is {limit}, but an image of {type(alignment).__name__} {takes} in {len(levels) - 1} steps; raise "
            "it, or lower num_inference_steps"
        )
    if alignment.grows is None:
        return alignment
    if budget.is_spent_by(cost_of(1), cost_of(2)):
        return replace(alignment, **{alignment.grows: budget.largest(cost_of)})
    beyond = 2 * getattr(alignment, alignment.grows)
    if not budget.is_spent_by(cost_of(1), cost_of(beyond)):
        # As the candidates of random steps are, in a run that has none.
        return alignment
    # As with the rollouts of a tree, which are at least as many as its particles.
    while not any(budget.exceeded(cost_of(beyond))):
        beyond *= 2
    within = bisect_left(range(1, beyond), True, key=lambda size: any(budget.exceeded(cost_of(size))))
    return replace(alignment, **{alignment.grows: within})


def largest_within(limits: Sequence[tuple[int, Callable[[int], int]]]) -> int:
    """The largest size of which every price is within its limit, or 1 if there is none.

    Args:
        limits: each with the price of a size, which is at least 1; it falls nowhere.

    Raises:
        ValueError: no price rises.
    """
    firsts, seconds = ([price(size) for _, price in limits] for size in (1, 2))
    # What does not rise, as the calls of a reward do not with the steps of a search, sets no bound.
    guesses = [
        1 + (limit - first) // (second - first)
        for (limit, _), first, second in zip(limits, firsts, seconds, strict=True)
        if second > first
    ]
    if not guesses:
        raise ValueError(
            f"a size of 1 costs {firsts[0]} and one of 2 costs {seconds[0]}; nothing can be bought with a budget"
        )

    def is_within(size: int) -> bool:
        return all(price(size) <= limit for limit, price in limits)

    # Prices are nearly linear in the size; a few steps mend the guess.
    size = max(1, min(guesses))
    while size > 1 and not is_within(size):
        size -= 1
    while is_within(size + 1):
        size += 1
    return size


def warn_of_many_scores(alignment: Method, law: Law, levels: Sequence[float]) -> None:
    """Says so where a run is to ask its reward for more than `MANY_SCORES` scores of each image.

    Rewards that are free (`Reward.is_free`) may be asked as often as a method likes. What a run costs is counted as by
    `cost_of_image`. A method that this cannot be counted of, as one of a user's own that does not run on the empty
    model, runs without the warning.
    """
    if law.reward is None or law.reward.is_free:
        return
    try:
        count = cost_of_image(alignment, law, levels).reward_calls
    except Exception as error:
        logger.debug("The scores of %s were not counted: %s", type(alignment).__name__, error)
        return
    if count > MANY_SCORES:
        logger.warning(
            "Reward '%s' will be asked for %d scores of each image by %s in %d steps; max_reward_calls=%d sets the "
            "method's count to fewer, and so do fewer steps.",
            *(law.reward.name, count, type(alignment).__name__, len(levels) - 1, MANY_SCORES),
        )


def cost_of_image(alignment: Method, law: Law, levels: Sequence[float]) -> Cost:
    """What one image of a method costs, counted by running the method's own loop on an empty model."""
    empty = empty_law(law, EmptyModel)
    x = torch.zeros(alignment.num_particles, 1)
    with torch.no_grad():
        alignment.run(empty, x, levels, RandomSource(torch.Generator(), 1))
    if (staged := stages_of(law.reward)) is not None:
        empty.cost.reward_calls += staged.num_scores(alignment.num_particles)
    return empty.cost


def empty_law(law: Law, emptied: Callable[[SampledModel], EmptyModel]) -> Law:
    """The law of one image under conditions without features, whose models are empty ones made of its own."""
    scores = law.score_model
    return Law(
        emptied(law.model),
        _without_features(law.conditions),
        [""],
        _Zero(),
        # Constraints count even at a scale of 0.
        law.scales()[:1] if law.scales().any() else float(law.is_constrained),
        scores and ScoreModel(emptied(scores.model), _without_features(scores.conditions)),
    )


def _without_features(conditions: Conditions) -> Conditions:
    negative: dict[str, Tensor] | None = None if conditions.negative_features is None else {}
    return replace(conditions, features={}, negative_features=negative)


class EmptyModel(SampledModel):
    """A model of a single number that costs what another does under the same conditions; for counting only.

    Args:
        model: the other.
    """

    def __init__(self, model: SampledModel) -> None:
        self.model = model
        self.name = model.name

    @property
    def has_denoiser(self) -> bool:
        return self.model.has_denoiser

    @property
    def has_flow_map(self) -> bool:
        return self.model.has_flow_map

    @property
    def has_diamond_map(self) -> bool:
        return self.model.has_diamond_map

    @property
    def predicts_mean(self) -> bool:
        return self.model.predicts_mean

    @property
    def max_noise_to_signal(self) -> float:
        return self.model.max_noise_to_signal

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return x / 2

    def diamond_map(
        self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        # Of both, so that gradients in either are found and counted.
        return (xbar + x) / 2

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        return self.model.evaluations_per_row(noise_to_signal, conditions)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return z.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1).sigmoid()

    def stock_transition(self) -> Transition:
        return self.model.stock_transition()

    def stochastic_transition(self) -> Transition:
        return self.model.stochastic_transition()


class _Zero(Reward):
    """The same score for all images, with a graph: what a method saves where one is better is not counted."""

    name = "zero"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 0 * images.mean((1, 2, 3))
