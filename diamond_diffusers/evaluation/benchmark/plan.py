"""The plan of a comparison: at each budget of network evaluations the largest method of every recipe.

A recipe that the model, the reward or the budget does not allow is listed as left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ...alignment.base import Method
from ...alignment.budget import Budget, cost_of_image
from ...alignment.law import Law
from ...alignment.stages import check_stages
from ...core.cost import Cost
from ...pipelines.call import Call
from ...pipelines.pipeline import DiamondMapPipeline
from ...rewards import Reward
from ...transitions.sampled_model import SampledModel
from .recipes import STEPS, Recipe, all_recipes

EVALUATIONS, SECONDS = "network evaluations", "seconds"
"""What a budget limits."""
# Differences are reported to these.
REFERENCES = ("plain", "best_of_n")


@dataclass(frozen=True)
class SizedMethod:
    """A method of a definite cost.

    Attributes:
        evaluations: cost of an image, as `Cost.equivalent_evaluations`; None if it is not known.
        uses_diamond_map: whether it evaluates the model's Diamond Map.
        own_steps: the number of steps of its recipe or its model, if the budget does not pay for so many.
    """

    name: str
    alignment: Method
    num_inference_steps: int
    evaluations: int | None = None
    uses_diamond_map: bool = False
    own_steps: int | None = None

    @property
    def label(self) -> str:
        """The name under which its images are kept; two budgets that allow the same method share the images."""
        return self.name if self.evaluations is None else f"{self.name}_{self.evaluations}"

    def resized(self, what: str, size: int) -> SizedMethod:
        """The method with another value of `num_inference_steps`, or of the field of its alignment with that name."""
        if what == STEPS:
            return replace(self, num_inference_steps=size)
        return replace(self, alignment=replace(self.alignment, **{what: size}))


CostOf = Callable[[SizedMethod], Cost]


@dataclass(frozen=True)
class Entry:
    """A budget, and the largest method of a recipe within it."""

    budget: float
    method: SizedMethod


@dataclass(frozen=True)
class LeftOut:
    """A method that is not compared at a budget, and why."""

    budget: float
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The methods that are compared, budget after budget, and those that are left out.

    Attributes:
        unit: of the budgets: `EVALUATIONS` or `SECONDS`.
    """

    entries: list[Entry]
    left_out: list[LeftOut]
    unit: str = EVALUATIONS

    @property
    def methods(self) -> list[SizedMethod]:
        """Each distinct method once: one that does not grow is the same at all budgets."""
        return list({entry.method.label: entry.method for entry in self.entries}.values())

    def at(self, budget: float) -> list[SizedMethod]:
        """The methods of one budget."""
        return [entry.method for entry in self.entries if entry.budget == budget]


def plan_methods(
    names: Sequence[str],
    budgets: Sequence[float],
    pipe: DiamondMapPipeline,
    reward: Reward,
    arguments: Mapping[str, Any] | None = None,
    recipes: Mapping[str, Recipe] | None = None,
    max_reward_calls: int | None = None,
    paces: Mapping[str, float] | None = None,
) -> Plan:
    """The named methods at each budget, each as large as possible without exceeding it.

    Args:
        budgets: network evaluations for each image; one under classifier-free guidance counts 2, its backward pass 4.
            With `paces` seconds.
        reward: the reward that the methods follow.
        arguments: arguments of the stock pipeline's `__call__` that are not the model's defaults.
        recipes: the recipes by name; None for all.
        max_reward_calls: the most scores of the reward for each image, at every budget; None for no limit.
        paces: seconds of a network evaluation of each method, by its name.

    Raises:
        ValueError: a name or a budget comes twice or is unknown, or no method can be compared.
    """
    recipes = all_recipes() if recipes is None else recipes
    check_request(names, budgets, recipes)
    call = pipe.prepare(**{"prompt": "a circle", **(arguments or {})})
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    with call.active():
        cost_of = dry_cost(call, reward)
        for budget in budgets:
            for name in names:
                try:
                    alignment = recipes[name].alignment_for(call.family)
                    _check_usable(alignment, call, reward)
                    recipe = replace(recipes[name], alignment=alignment)
                    steps = call.arguments.num_inference_steps
                    if paces is None:
                        limit, option = int(budget), "--budgets"
                    else:
                        limit, option = _evaluations_in(budget, name, paces), "--budgets-seconds"
                    sized = sized_to_budget(name, recipe, limit, steps, cost_of, max_reward_calls, option)
                    check_stages(reward, sized.alignment)
                    entries.append(Entry(budget, _described(sized, call.family, recipe.num_inference_steps or steps)))
                except ValueError as reason:
                    left_out.append(LeftOut(budget, name, str(reason)))
    if not entries:
        raise ValueError(left_out[0].reason)
    return Plan(entries, left_out, EVALUATIONS if paces is None else SECONDS)


def _evaluations_in(seconds: float, name: str, paces: Mapping[str, float]) -> int:
    """How many network evaluations of a method a budget of seconds pays for."""
    if name not in paces:
        raise ValueError(f"method {name!r} fits none of the sizes at which methods are timed; leave it out")
    return int(seconds / paces[name])


def _described(method: SizedMethod, model: SampledModel, own_steps: int) -> SizedMethod:
    """A method with what is said of it beside its size."""
    return replace(
        method,
        uses_diamond_map=method.alignment.resolve(model).uses_diamond_map(model),
        own_steps=own_steps if method.num_inference_steps < own_steps else None,
    )


def check_request(names: Sequence[str], budgets: Sequence[float], recipes: Mapping[str, Recipe]) -> None:
    """Raises a `ValueError` if a name or a budget comes twice or is unknown; this check needs no model."""
    for position, name in enumerate(names):
        if name not in recipes:
            raise ValueError(f"methods names {name!r}; choose among {', '.join(recipes)}")
        if name in names[:position]:
            raise ValueError(f"methods names {name!r} twice; name each method once")
    if len(set(budgets)) < len(budgets) or min(budgets, default=0) <= 0:
        raise ValueError(f"budgets is {list(budgets)}; give different positive numbers")


def _check_usable(alignment: Method, call: Call, reward: Reward) -> None:
    """Raises a `ValueError` where the model or the reward lacks what a method needs."""
    alignment.check(reward)
    if alignment.resolve(call.family).uses_diamond_map(call.family):
        call.check_baked_guidance()


def sized_to_budget(
    name: str,
    recipe: Recipe,
    budget: int,
    default_steps: int,
    cost_of: CostOf,
    max_reward_calls: int | None = None,
    budget_option: str = "--budgets",
) -> SizedMethod:
    """The largest method of a recipe whose `equivalent_evaluations` and scores for an image are within the budgets."""
    limits = Budget(max(1, budget), max_reward_calls)
    assert isinstance(recipe.alignment, Method), "the recipe is that of one model, for which its method was made"
    alignment = recipe.alignment.within(budget, max_reward_calls)
    method = SizedMethod(name, alignment, recipe.num_inference_steps or default_steps)
    for what in recipe.growth_of(alignment):
        method = _grown(method, what, limits, cost_of)
    cost = cost_of(method)
    for limit, most, spent in limits.exceeded(cost):
        named, unit, option = {
            "max_network_evaluations": ("budget", EVALUATIONS, budget_option),
            "max_reward_calls": (limit, "scores", "--max-reward-calls"),
        }[limit]
        raise ValueError(
            f"{named} is {most}, but method {name!r} takes at least {spent} {unit} an image; "
            f"raise {option} or leave the method out"
        )
    return replace(method, evaluations=cost.equivalent_evaluations)


def _grown(method: SizedMethod, what: str, budget: Budget, cost_of: CostOf) -> SizedMethod:
    """The method of the largest size within the budget, or of size 1."""

    @cache
    def cost(size: int) -> Cost:
        return cost_of(method.resized(what, size))

    if cost(2).equivalent_evaluations <= cost(1).equivalent_evaluations:
        raise ValueError(f"method {method.name!r} grows in {what}, which costs nothing; name another in its recipe")
    return method.resized(what, budget.largest(cost))


def dry_cost(call: Call, reward: Reward | None = None) -> CostOf:
    """A function that counts what one image of a method costs; valid while the call is active.

    Args:
        reward: that the methods follow, whose later stages cost scores; none of its own are asked for.
    """
    conditions, scores = call.conditions, call.scores

    def cost_of(method: SizedMethod) -> Cost:
        law = Law(call.family, conditions, call.texts, reward, score_model=scores)
        return cost_of_image(method.alignment, law, call.levels(method.num_inference_steps))

    return cost_of
