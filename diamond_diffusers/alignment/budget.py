"""How much of a method a budget of network evaluations pays for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..core.cost import Cost
from ..core.levels import Level
from ..core.model import Conditions
from ..rewards.base import Reward
from ..transitions.base import Transition
from ..transitions.sampled_model import SampledModel
from .base import Method
from .law import Law, ScoreModel
from .random_source import RandomSource


def fit_to_budget(alignment: Method, law: Law, levels: Sequence[float], max_network_evaluations: int) -> Method:
    """The method with the largest count (`alignment.grows`) whose cost of one image is within a budget.

    It is never exceeded, and one more of the count would exceed it. A method whose count buys nothing stays as it is.

    Args:
        alignment: its own count is replaced.
        law: what it will run on; nothing of it is evaluated.
        levels: of the run.
        max_network_evaluations: the budget of an image, in which an evaluation under classifier-free guidance counts 2
            and a backward pass 2 (`Cost.equivalent_evaluations`).

    Raises:
        ValueError: the budget is too small for the method.
    """

    def price(size: int) -> int:
        sized = alignment if alignment.grows is None else replace(alignment, **{alignment.grows: size})
        return cost_of_image(sized, law, levels).equivalent_evaluations

    least = price(1)
    if least > max_network_evaluations:
        raise ValueError(
            f"max_network_evaluations is {max_network_evaluations}, but an image of {type(alignment).__name__} takes "
            f"at least {least} in {len(levels) - 1} steps; raise it, or lower num_inference_steps"
        )
    if alignment.grows is None:
        return alignment
    return replace(alignment, **{alignment.grows: largest_within(max_network_evaluations, price)})


def largest_within(budget: int, price: Callable[[int], int]) -> int:
    """The largest size whose price is within the budget, or 1 if none is.

    Args:
        price: rises with the size, which is at least 1.

    Raises:
        ValueError: it does not rise.
    """
    first, second = price(1), price(2)
    if second <= first:
        raise ValueError(f"a size of 1 costs {first} and one of 2 costs {second}; nothing can be bought with a budget")
    # The price is nearly linear in the size; a few steps mend the guess.
    size = max(1, 1 + (budget - first) // (second - first))
    while size > 1 and price(size) > budget:
        size -= 1
    while price(size + 1) <= budget:
        size += 1
    return size


def cost_of_image(alignment: Method, law: Law, levels: Sequence[float]) -> Cost:
    """What one image of a method costs, counted by running the method's own loop on an empty model."""
    empty = empty_law(law, EmptyModel)
    x = torch.zeros(alignment.num_particles, 1)
    with torch.no_grad():
        alignment.run(empty, x, levels, RandomSource(torch.Generator(), 1))
    return empty.cost


def empty_law(law: Law, emptied: Callable[[SampledModel], EmptyModel]) -> Law:
    """The law of one image under conditions without features, whose models are empty ones made of its own."""
    scores = law.score_model
    return Law(
        emptied(law.model),
        _without_features(law.conditions),
        [""],
        _MeanPixel(),
        # Constraints count even at a scale of 0.
        law.reward_scale or float(law.is_constrained),
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


class _MeanPixel(Reward):
    name = "mean pixel"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))
