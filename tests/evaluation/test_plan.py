from dataclasses import dataclass

import pytest

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    BeamSearch,
    BestOfN,
    DenoiserPoint,
    DiamondTransition,
    GlassPosterior,
    Guidance,
    Guide,
    Method,
    NoAlignment,
    ODETransition,
    RandomSearch,
)
from diamond_diffusers.alignment.budget import EmptyModel
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.evaluation.benchmark.compare import Setup, compare
from diamond_diffusers.evaluation.benchmark.plan import REFERENCES, SizedMethod, dry_cost, plan_methods, sized_to_budget
from diamond_diffusers.evaluation.benchmark.prompts import miniature_suite
from diamond_diffusers.evaluation.benchmark.recipes import Recipe, all_recipes, grid_cells, names_in
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.rewards import CallableReward
from diamond_diffusers.transitions import TRANSITIONS

from ..conftest import redness

RECIPES = all_recipes()
REWARD = CallableReward(redness, differentiable=True)
KINDS = list({type(recipe.alignment): name for name, recipe in RECIPES.items()}.values())
"""One recipe of each method."""


@pytest.fixture
def cost_of(tiny_pipe):
    return dry_cost(tiny_pipe.prepare("a circle"))


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        # Three steps, two evaluations a row under classifier-free guidance.
        (NoAlignment(), (6, 0, 1, 1)),
        (BestOfN(num_particles=4), (24, 0, 4, 4)),
        # One step without and two with a value of each particle, then the final images.
        (SMC(num_particles=2, posterior=GlassPosterior(2)), (20, 0, 6, 6)),
        (Guidance(guide=Guide("pathwise"), num_particles=2), (12, 12, 8, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_dry_run_costs_what_the_formula_says(cost_of, alignment, expected):
    cost = cost_of(SizedMethod("any", alignment, 3))
    assert (cost.network_evaluations, cost.backward_passes, cost.decodes, cost.reward_calls) == expected


ALL = pytest.param(list(RECIPES), marks=pytest.mark.slow, id="all")


def test_scores_are_limited_too(cost_of):
    recipe, limits = Recipe(BestOfN()), {"default_steps": 3, "cost_of": cost_of, "max_reward_calls": 4}
    method = sized_to_budget("best_of_n", recipe, 40, **limits)
    # Four particles are scored; what is left of the evaluations goes into steps, of which more cost no score.
    assert (method.alignment.num_particles, method.num_inference_steps) == (4, 5)
    method = sized_to_budget("smc", Recipe(SMC()), 40, **limits)
    assert cost_of(method).reward_calls <= 4
    limits["max_reward_calls"] = 1
    with pytest.raises(
        ValueError, match="max_reward_calls is 1, but method 'beam' takes at least 5 scores an image; ra"
    ):
        sized_to_budget("beam", Recipe(BeamSearch(branching=2), grows=("num_particles",)), 40, **limits)


@pytest.mark.parametrize("names", [pytest.param(KINDS, id="one of each method"), ALL])
def test_methods_fill_the_budgets_without_exceeding_them(tiny_pipe, cost_of, names):
    budgets = (60, 101)
    plan = plan_methods(names, budgets, tiny_pipe, REWARD)
    assert [(entry.budget, entry.method.name) for entry in plan.entries] == [
        (budget, name) for budget in budgets for name in names if (budget, name) not in left_out(plan)
    ]
    for entry in plan.entries:
        method = entry.method
        assert cost_of(method).equivalent_evaluations == method.evaluations <= entry.budget
        grows = RECIPES[method.name].growth_of(method.alignment)
        if grows:
            more = method.resized(grows[-1], size_of(method, grows[-1]) + 1)
            assert cost_of(more).equivalent_evaluations > entry.budget


@pytest.fixture
def own_names(monkeypatch):
    """A method, one that needs an option, and a preset, under names of their own."""

    @dataclass(frozen=True)
    class Fixed(BestOfN):
        grows = None

    @dataclass(frozen=True)
    class Needy(Method):
        option: int

    entries = {"fixed_best": Fixed, "needy": Needy}
    monkeypatch.setattr(METHODS, "_entries", {**METHODS._entries, **entries})
    preset = lambda model=None, **options: RandomSearch(num_candidates=2, **options)  # noqa: E731
    monkeypatch.setattr(PRESETS, "_entries", {**PRESETS._entries, "short_search": preset})


def test_what_is_registered_is_compared_by_its_name(own_names, tiny_pipe):
    names = ["fixed_best", "short_search", "needy"]
    assert set(all_recipes()) == {*RECIPES, *names}
    plan = plan_methods(names, [48], tiny_pipe, REWARD)
    # One does not grow, of the other the candidates do, and the third cannot be made by its name alone.
    fixed, search = plan.methods
    assert (fixed.alignment.num_particles, fixed.evaluations) == (4, 24)
    assert (search.alignment.num_candidates, search.evaluations) == (8, 48)
    assert "'needy' needs the option 'option', which has no default" in plan.left_out[0].reason


@pytest.fixture
def own_parts(monkeypatch):
    """Posterior samplers and transitions under names of their own, some of which need an option or share a name."""

    @dataclass(frozen=True)
    class Fine(GlassPosterior):
        num_inner_steps: int = 6

    @dataclass(frozen=True)
    class Point(DenoiserPoint):
        pass

    @dataclass(frozen=True)
    class Step(AncestralTransition):
        pass

    @dataclass(frozen=True)
    class NeedyStep(ODETransition):
        option: int

    posteriors = {"fine": Fine, "own_point": Point, "both": Fine}
    monkeypatch.setattr(POSTERIORS, "_entries", {**POSTERIORS._entries, **posteriors})
    transitions = {"step": Step, "needy_step": NeedyStep, "both": Step}
    monkeypatch.setattr(TRANSITIONS, "_entries", {**TRANSITIONS._entries, **transitions})
    monkeypatch.setattr(PRESETS, "_entries", {**PRESETS._entries, "step_smc": lambda model=None, **options: SMC()})
    return Fine, Point, Step


def test_parts_of_a_users_own_are_columns_of_the_grid(own_parts, tiny_pipe):
    fine, point, step = own_parts
    recipes = all_recipes()
    methods = ("beam_search", "smc", "guidance", "guided_smc")
    several = ("resampling", "posterior_smc", "guided_posterior_smc")
    columns = {"fine": (*methods, *several), "both": (*methods, *several), "own_point": methods, "step": methods}
    assert recipes.keys() - RECIPES.keys() == {f"{name}_{cell}" for name, cells in columns.items() for cell in cells}
    # A preset comes before the cell of its name.
    names = ["fine_resampling", "own_point_smc", "step_guidance", "both_smc", "step_smc"]
    found = [method.alignment for method in plan_methods(names, [200], tiny_pipe, REWARD).methods]
    assert [type(each.posterior) for each in found] == [fine, point, DenoiserPoint, fine, type(SMC().posterior)]
    assert found[0].posterior.num_samples == 2
    assert [type(each.transition) for each in found[2:4]] == [step, step]
    assert found[4].transition is None


def test_registered_methods_of_the_grid_are_not_compared_twice():
    assert "smc" not in RECIPES and "guidance" not in RECIPES
    assert all_recipes().keys() == RECIPES.keys()


def left_out(plan):
    return {(entry.budget, entry.name) for entry in plan.left_out}


def size_of(method, what):
    return method.num_inference_steps if what == "num_inference_steps" else getattr(method.alignment, what)


def test_a_method_that_does_not_grow_is_drawn_once(tiny_pipe):
    plan = plan_methods(["plain", "best_of_n"], [12, 24], tiny_pipe, REWARD)
    assert [method.label for method in plan.methods] == ["plain_6", "best_of_n_12", "best_of_n_24"]
    assert [method.label for method in plan.at(24)] == ["plain_6", "best_of_n_24"]


def test_what_cannot_be_compared_is_listed_with_its_reason(tiny_pipe):
    recipes = {
        **{name: RECIPES[name] for name in ("plain", "best_of_n", "dps")},
        "mapped": Recipe(SMC(transition=DiamondTransition())),
    }
    jpeg = CallableReward(redness, differentiable=False)
    plan = plan_methods(list(recipes), [4, 12], tiny_pipe, jpeg, {"num_inference_steps": 2}, recipes)
    assert [(entry.budget, entry.method.name) for entry in plan.entries] == [
        (4, "plain"), (4, "best_of_n"), (12, "plain"), (12, "best_of_n")
    ]  # fmt: skip
    reasons = {(entry.budget, entry.name): entry.reason for entry in plan.left_out}
    assert set(reasons) == {(budget, name) for budget in (4, 12) for name in ("dps", "mapped")}
    assert "gradient is 'pathwise', but reward 'redness' has no gradient" in reasons[12, "dps"]
    assert "needs a Diamond Map, but this flux model has none" in reasons[12, "mapped"]


def test_a_recipe_may_grow_in_any_number_of_its_alignment(cost_of):
    recipe = Recipe(SMC(num_particles=2, posterior=GlassPosterior(2)), grows=("num_particles",))
    assert sized_to_budget("smc", recipe, 40, default_steps=3, cost_of=cost_of).alignment.num_particles == 4
    with pytest.raises(ValueError, match="'smc' grows in max_tilt, which costs nothing"):
        sized_to_budget("smc", Recipe(SMC(), grows=("max_tilt",)), 40, default_steps=3, cost_of=cost_of)


def test_particles_grow_before_steps(cost_of):
    method = sized_to_budget("best_of_n", Recipe(BestOfN()), budget=40, default_steps=3, cost_of=cost_of)
    # 3 steps x 2 evaluations x 6 particles = 36; a fourth step would make 48.
    assert (method.alignment.num_particles, method.num_inference_steps) == (6, 3)
    method = sized_to_budget(
        "guidance", Recipe(Guidance(guide=Guide("pathwise"))), budget=16, default_steps=3, cost_of=cost_of
    )
    # A guided step costs 2 + 2 x 2, so that three are too dear.
    assert (method.alignment.num_particles, method.num_inference_steps) == (1, 2)


@pytest.mark.parametrize("names", [pytest.param(KINDS, id="one of each method"), ALL])
def test_the_dry_run_counts_as_the_real_one(tiny_pipe, cost_of, tmp_path, names):
    suite = miniature_suite()
    setup = Setup(tiny_pipe, "tiny", suite, REWARD)
    methods = plan_methods(names, [24], tiny_pipe, REWARD).methods
    records = compare(setup, methods, suite.first(2), tmp_path)
    for method in methods:
        planned = cost_of(method).as_dict()
        for record in records[method.label]:
            assert {**record.cost.as_dict(), "seconds": 0} == {**planned, "seconds": 0}


FEW = ["best_of_n", "point_smc", "dps", "flow_map_smc", "weighted_guidance", "diamond_best_of_n"]


@pytest.mark.parametrize("names", [pytest.param(FEW, id="a few"), ALL])
def test_methods_evaluate_the_map_where_they_say_so(tiny_pipe, monkeypatch, names):
    tiny_pipe.family.posterior_map = DiamondMap(tiny_pipe.family, rank=2)
    evaluated, diamond_map = [], EmptyModel.diamond_map
    monkeypatch.setattr(EmptyModel, "diamond_map", lambda self, *of: evaluated.append(1) or diamond_map(self, *of))
    found = {}
    for name in names:
        evaluated.clear()
        (method,) = plan_methods([name], [120], tiny_pipe, REWARD).methods
        found[name] = (method.uses_diamond_map, bool(evaluated))
    assert {says for says, _ in found.values()} == {True, False}
    assert [name for name, (says, does) in found.items() if says != does] == []


def test_fewer_steps_than_its_own_are_told(tiny_pipe):
    plan = plan_methods(["dps", "best_of_n"], [12, 60], tiny_pipe, REWARD)
    steps = {(entry.budget, entry.method.name): entry.method for entry in plan.entries}
    assert {key: (method.num_inference_steps, method.own_steps) for key, method in steps.items()} == {
        (12, "dps"): (2, 3),
        (12, "best_of_n"): (3, None),
        (60, "dps"): (3, None),
        (60, "best_of_n"): (3, None),
    }


def test_a_budget_of_seconds_buys_evaluations(tiny_pipe):
    paces = {"best_of_n": 0.25, "plain": 0.5}
    plan = plan_methods(["plain", "best_of_n", "random_search"], [1.0, 3.0], tiny_pipe, REWARD, paces=paces)
    assert plan.unit == "seconds"
    assert [(entry.budget, entry.method.label) for entry in plan.entries] == [(1.0, "best_of_n_4"), (3.0, "plain_6"),
                                                                             (3.0, "best_of_n_12")]  # fmt: skip
    reasons = {(left.budget, left.name): left.reason for left in plan.left_out}
    assert "takes at least 6 network evaluations an image; raise --budgets-seconds" in reasons[1.0, "plain"]
    assert "fits none of the sizes" in reasons[1.0, "random_search"] and len(reasons) == 3


def test_names_of_groups():
    assert names_in("plain, presets")[1:] == PRESETS.names()
    assert set(names_in("grid")) < set(RECIPES) and "weighted_resampling" in names_in("grid")
    assert {cell for _, cell in grid_cells().values()} == {
        "beam_search", "smc", "guidance", "guided_smc", "resampling", "posterior_smc", "guided_posterior_smc"
    }  # fmt: skip


def test_references_are_in_the_table():
    assert set(REFERENCES) <= set(RECIPES)


@pytest.mark.parametrize(
    ("names", "budgets", "message"),
    [
        (["plain", "magic"], [100], "methods names 'magic'; choose among plain"),
        (["plain", "plain"], [100], "methods names 'plain' twice"),
        (["plain"], [100, 100], r"budgets is \[100, 100\]; give different positive numbers"),
        (["plain"], [], r"budgets is \[\]"),
        (["plain"], [5], "budget is 5, but method 'plain' takes at least 6"),
    ],
)
def test_errors_are_clear(tiny_pipe, names, budgets, message):
    with pytest.raises(ValueError, match=message):
        plan_methods(names, budgets, tiny_pipe, REWARD)
