"""The compared methods, each spending as much of one budget of network evaluations as it can.

`RECIPES` is the table to edit: a method is a name, an alignment, a number of steps, and what grows with the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..alignment import SMC, Alignment, BestOfN, Guidance, NoAlignment
from ..alignment.model import TiltedModel
from ..alignment.random_source import RandomSource
from ..backbones.base import Conditions, Denoising
from ..cost import Cost
from ..levels import Level, RectifiedFlowPath
from ..pipelines import DiamondMapPipeline
from ..pipelines.arguments import resolve_arguments
from ..posteriors import DenoiserPoint, GlassPosterior
from ..rewards import CallableReward
from ..transitions import GlassTransition, Transition

PARTICLES, STEPS = "num_particles", "num_inference_steps"


@dataclass(frozen=True)
class Recipe:
    """How a method spends a budget.

    Attributes:
        alignment: the method; what grows is replaced.
        num_inference_steps: None for the model's own number.
        grows: what is raised to spend the budget, in this order: particles at the given number of steps, then steps
            with what is left. If one particle at that number is too dear already, fewer steps are taken.
    """

    alignment: Alignment
    num_inference_steps: int | None = None
    grows: tuple[str, ...] = (PARTICLES, STEPS)


RECIPES: dict[str, Recipe] = {
    "plain": Recipe(NoAlignment(), grows=()),
    "best_of_n": Recipe(BestOfN()),
    "fk_steering": Recipe(SMC(posterior=DenoiserPoint(), transition=GlassTransition(num_inner_steps=1))),
    # Twice the evaluations a step, so half the steps for as many particles.
    "glass_smc": Recipe(SMC(posterior=GlassPosterior(num_inner_steps=2)), num_inference_steps=6),
    "guidance": Recipe(Guidance(gradient="isotropic")),
    "pathwise_guidance": Recipe(Guidance(gradient="pathwise")),
    "guided_smc": Recipe(SMC(posterior=DenoiserPoint(), guidance=Guidance(gradient="isotropic"))),
}

# Differences are reported to these.
REFERENCES = ("plain", "best_of_n")


@dataclass(frozen=True)
class Method:
    """A method of a definite cost."""

    name: str
    alignment: Alignment
    num_inference_steps: int

    def resized(self, what: str, size: int) -> Method:
        """The method with another number of particles or steps."""
        if what == STEPS:
            return replace(self, num_inference_steps=size)
        return replace(self, alignment=replace(self.alignment, **{what: size}))


CostOf = Callable[[Method], Cost]


def build_methods(
    names: Sequence[str], budget: int, pipe: DiamondMapPipeline, recipes: Mapping[str, Recipe] = RECIPES
) -> list[Method]:
    """The named methods, each as dear as possible without exceeding the budget.

    Args:
        budget: network evaluations an image; one under classifier-free guidance counts 2, its backward pass 4.

    Raises:
        ValueError: a name is unknown or comes twice, or the budget is too small for a method.
    """
    for position, name in enumerate(names):
        if name not in recipes:
            raise ValueError(f"methods names {name!r}; choose among {', '.join(recipes)}")
        if name in names[:position]:
            raise ValueError(f"methods names {name!r} twice; name each method once")
    arguments = resolve_arguments(pipe.backbone, {"prompt": "a circle"}, pipe.defaults)
    cost_of = dry_cost(pipe, arguments)
    return [fit_to_budget(name, recipes[name], budget, arguments[STEPS], cost_of) for name in names]


def fit_to_budget(name: str, recipe: Recipe, budget: int, default_steps: int, cost_of: CostOf) -> Method:
    """The largest method of a recipe whose `equivalent_evaluations` an image are within the budget."""
    method = Method(name, recipe.alignment, recipe.num_inference_steps or default_steps)
    for what in recipe.grows:
        method = _grown(method, what, budget, cost_of)
    price = cost_of(method).equivalent_evaluations
    if price > budget:
        raise ValueError(
            f"budget is {budget}, but method {name!r} takes at least {price} network evaluations an image; "
            "raise --budget or leave the method out"
        )
    return method


def _grown(method: Method, what: str, budget: int, cost_of: CostOf) -> Method:
    """The method of the largest size within the budget, or of size 1."""

    def price(size: int) -> int:
        return cost_of(method.resized(what, size)).equivalent_evaluations

    # The price is nearly linear in the size; a few steps mend the guess.
    first = price(1)
    size = max(1, 1 + (budget - first) // max(price(2) - first, 1))
    while size > 1 and price(size) > budget:
        size -= 1
    while price(size + 1) <= budget:
        size += 1
    return method.resized(what, size)


def dry_cost(pipe: DiamondMapPipeline, arguments: Mapping[str, object]) -> CostOf:
    """A function that counts what one image of a method costs, by running the method's own loop on an empty model."""
    with torch.no_grad():
        conditions = pipe.backbone.encode(arguments)
    empty = _EmptyModel(pipe.backbone, conditions)

    def cost_of(method: Method) -> Cost:
        levels = pipe.backbone.levels({**arguments, STEPS: method.num_inference_steps}, conditions)
        reward = CallableReward(_mean_pixel, differentiable=True)
        model = TiltedModel(empty, Conditions(features={}), ["a circle"], reward)
        x = torch.zeros(method.alignment.num_particles, 1)
        with torch.no_grad():
            method.alignment.run(model, x, levels, RandomSource(torch.Generator(), 1))
        return model.cost

    return cost_of


class _EmptyModel(Denoising):
    """A model of a single number that costs what another does under its conditions; for counting only."""

    path = RectifiedFlowPath()

    def __init__(self, model: Denoising, conditions: Conditions) -> None:
        self.model = model
        self.model_conditions = conditions
        self.has_denoiser = model.has_denoiser
        self.has_flow_map = model.has_flow_map
        self.predicts_mean = model.predicts_mean

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return x / 2

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        return self.model.evaluations_per_row(noise_to_signal, self.model_conditions)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return z.reshape(-1, 1, 1, 1).expand(-1, 3, 1, 1).sigmoid()

    def stock_transition(self) -> Transition:
        return self.model.stock_transition()


def _mean_pixel(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))
