"""The compared methods, each spending as much of a budget of network evaluations as it can.

`RECIPES` is the table to edit: a method is a name, an alignment, a number of steps, and what grows with the budget. A
recipe that the model, the reward or the budget does not allow is listed as left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..alignment import SMC, Alignment, BestOfN, Guidance, NoAlignment, PosteriorResampling
from ..alignment.budget import cost_of_image, largest_within
from ..alignment.model import TiltedModel
from ..alignment.presets import guided_diamond
from ..cost import Cost
from ..diamond import DiamondPosterior, DiamondTransition
from ..pipelines import DiamondMapPipeline
from ..pipelines.arguments import check_baked_guidance, resolve_arguments
from ..posteriors import DenoiserPoint, GlassPosterior
from ..rewards import Reward
from ..transitions import GlassTransition

PARTICLES, STEPS = "num_particles", "num_inference_steps"


@dataclass(frozen=True)
class Recipe:
    """How a method spends a budget.

    Attributes:
        alignment: the method; what grows is replaced.
        num_inference_steps: None for the model's own number.
        grows: what is raised to spend the budget, in this order: `num_inference_steps`, or any number that the
            alignment has under that name. By default particles at the given number of steps, then steps with what is
            left; if one particle at that number is too dear already, fewer steps are taken.
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
    "glass_guidance": Recipe(Guidance(GlassPosterior(num_inner_steps=2), "isotropic"), num_inference_steps=6),
    "glass_resampling": Recipe(PosteriorResampling(posterior=GlassPosterior(num_inner_steps=2, num_samples=2))),
    "diamond_best_of_n": Recipe(BestOfN(transition=DiamondTransition())),
    "diamond_smc": Recipe(SMC(posterior=DiamondPosterior(1), transition=DiamondTransition())),
    "diamond_resampling": Recipe(PosteriorResampling(posterior=DiamondPosterior(2))),
    "guided_diamond": Recipe(guided_diamond()),
}

# Differences are reported to these.
REFERENCES = ("plain", "best_of_n")


@dataclass(frozen=True)
class Method:
    """A method of a definite cost.

    Attributes:
        evaluations: what an image costs, as `Cost.equivalent_evaluations`; None where that is not known.
    """

    name: str
    alignment: Alignment
    num_inference_steps: int
    evaluations: int | None = None

    @property
    def label(self) -> str:
        """Under which its images are kept: two budgets that allow the same method share them."""
        return self.name if self.evaluations is None else f"{self.name}_{self.evaluations}"

    def resized(self, what: str, size: int) -> Method:
        """The method with another number of steps, or of what its alignment has under that name."""
        if what == STEPS:
            return replace(self, num_inference_steps=size)
        return replace(self, alignment=replace(self.alignment, **{what: size}))


CostOf = Callable[[Method], Cost]


@dataclass(frozen=True)
class Entry:
    """A method that is the largest within a budget."""

    budget: int
    method: Method


@dataclass(frozen=True)
class LeftOut:
    """A method that is not compared at a budget, and why."""

    budget: int
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is compared, budget after budget, and what is not."""

    entries: list[Entry]
    left_out: list[LeftOut]

    @property
    def methods(self) -> list[Method]:
        """Each distinct method once: one that does not grow is the same at all budgets."""
        return list({entry.method.label: entry.method for entry in self.entries}.values())

    def at(self, budget: int) -> list[Method]:
        """The methods of one budget."""
        return [entry.method for entry in self.entries if entry.budget == budget]


def plan_methods(
    names: Sequence[str],
    budgets: Sequence[int],
    pipe: DiamondMapPipeline,
    reward: Reward,
    arguments: Mapping[str, Any] | None = None,
    recipes: Mapping[str, Recipe] = RECIPES,
) -> Plan:
    """The named methods at each budget, each as dear as possible without exceeding it.

    Args:
        budgets: network evaluations an image; one under classifier-free guidance counts 2, its backward pass 4.
        reward: what the methods follow.
        arguments: of the stock pipeline's `__call__`, where they are not the model's defaults.

    Raises:
        ValueError: a name or a budget comes twice or is unknown, or no method can be compared.
    """
    for position, name in enumerate(names):
        if name not in recipes:
            raise ValueError(f"methods names {name!r}; choose among {', '.join(recipes)}")
        if name in names[:position]:
            raise ValueError(f"methods names {name!r} twice; name each method once")
    if len(set(budgets)) < len(budgets) or min(budgets, default=0) < 1:
        raise ValueError(f"budgets is {list(budgets)}; give different positive numbers")
    given = resolve_arguments(pipe.backbone, {"prompt": "a circle", **(arguments or {})}, pipe.defaults)
    cost_of = dry_cost(pipe, given)
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    for budget in budgets:
        for name in names:
            try:
                _check_usable(recipes[name].alignment, pipe, reward, given)
                entries.append(Entry(budget, fit_to_budget(name, recipes[name], budget, given[STEPS], cost_of)))
            except ValueError as reason:
                left_out.append(LeftOut(budget, name, str(reason)))
    if not entries:
        raise ValueError(left_out[0].reason)
    return Plan(entries, left_out)


def _check_usable(alignment: Alignment, pipe: DiamondMapPipeline, reward: Reward, arguments: Mapping[str, Any]) -> None:
    """Raises a `ValueError` where the model or the reward lacks what a method needs."""
    alignment.check(reward)
    if alignment.resolve(pipe.backbone).uses_diamond_map:
        check_baked_guidance(pipe.backbone, arguments)


def fit_to_budget(name: str, recipe: Recipe, budget: int, default_steps: int, cost_of: CostOf) -> Method:
    """The largest method of a recipe whose `equivalent_evaluations` an image are within the budget."""
    method = Method(name, recipe.alignment, recipe.num_inference_steps or default_steps)
    for what in recipe.grows:
        method = _grown(method, what, budget, cost_of)
    price = cost_of(method).equivalent_evaluations
    if price > budget:
        raise ValueError(
            f"budget is {budget}, but method {name!r} takes at least {price} network evaluations an image; "
            "raise --budgets or leave the method out"
        )
    return replace(method, evaluations=price)


def _grown(method: Method, what: str, budget: int, cost_of: CostOf) -> Method:
    """The method of the largest size within the budget, or of size 1."""

    def price(size: int) -> int:
        return cost_of(method.resized(what, size)).equivalent_evaluations

    if price(2) <= price(1):
        raise ValueError(f"method {method.name!r} grows in {what}, which costs nothing; name another in its recipe")
    return method.resized(what, largest_within(budget, price))


def dry_cost(pipe: DiamondMapPipeline, arguments: Mapping[str, object]) -> CostOf:
    """A function that counts what one image of a method costs."""
    with torch.no_grad():
        conditions = pipe.backbone.encode(arguments)

    def cost_of(method: Method) -> Cost:
        levels = pipe.backbone.levels({**arguments, STEPS: method.num_inference_steps}, conditions)
        return cost_of_image(method.alignment, TiltedModel(pipe.backbone, conditions, [""]), levels)

    return cost_of
