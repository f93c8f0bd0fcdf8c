import pytest

from diamond_diffusers.alignment import SMC, BestOfN, Guidance, NoAlignment
from diamond_diffusers.evaluation.compare import Setup, compare
from diamond_diffusers.evaluation.methods import (
    RECIPES,
    REFERENCES,
    Method,
    Recipe,
    build_methods,
    dry_cost,
    fit_to_budget,
)
from diamond_diffusers.pipelines.arguments import resolve_arguments
from diamond_diffusers.posteriors import GlassPosterior
from diamond_diffusers.rewards import CallableReward

from ..conftest import redness


@pytest.fixture
def cost_of(tiny_pipe):
    return dry_cost(tiny_pipe, resolve_arguments(tiny_pipe.backbone, {"prompt": "a circle"}, tiny_pipe.defaults))


@pytest.mark.parametrize(
    ("alignment", "expected"),
    [
        # Three steps, two evaluations a row under classifier-free guidance.
        (NoAlignment(), (6, 0, 1, 1)),
        (BestOfN(num_particles=4), (24, 0, 4, 4)),
        # Two values per level and particle, then the final images.
        (SMC(num_particles=2, posterior=GlassPosterior(2)), (24, 0, 8, 8)),
        (Guidance(gradient="pathwise", num_particles=2), (12, 12, 8, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_dry_run_costs_what_the_formula_says(cost_of, alignment, expected):
    cost = cost_of(Method("any", alignment, 3))
    assert (cost.network_evaluations, cost.backward_passes, cost.decodes, cost.reward_calls) == expected


@pytest.mark.parametrize("budget", [60, 101])
def test_methods_fill_the_budget_without_exceeding_it(tiny_pipe, cost_of, budget):
    for method in build_methods(list(RECIPES), budget, tiny_pipe):
        cost = cost_of(method).equivalent_evaluations
        assert cost <= budget
        if RECIPES[method.name].grows:
            more_steps = method.resized("num_inference_steps", method.num_inference_steps + 1)
            assert cost_of(more_steps).equivalent_evaluations > budget


def test_particles_grow_before_steps(cost_of):
    method = fit_to_budget("best_of_n", Recipe(BestOfN()), budget=40, default_steps=3, cost_of=cost_of)
    # 3 steps x 2 evaluations x 6 particles = 36; a fourth step would make 48.
    assert (method.alignment.num_particles, method.num_inference_steps) == (6, 3)
    method = fit_to_budget(
        "guidance", Recipe(Guidance(gradient="pathwise")), budget=16, default_steps=3, cost_of=cost_of
    )
    # A guided step costs 2 + 2 x 2, so that three are too dear.
    assert (method.alignment.num_particles, method.num_inference_steps) == (1, 2)


def test_the_dry_run_counts_as_the_real_one(tiny_pipe, cost_of, tmp_path):
    from diamond_diffusers.evaluation.compare import benchmark_captions

    setup = Setup(tiny_pipe, "tiny", CallableReward(redness, differentiable=True))
    methods = build_methods(list(RECIPES), 24, tiny_pipe)
    records = compare(setup, methods, benchmark_captions(2), tmp_path)
    for method in methods:
        planned = cost_of(method).as_dict()
        for record in records[method.name]:
            assert {**record.cost.as_dict(), "seconds": 0} == {**planned, "seconds": 0}


def test_references_are_in_the_table():
    assert set(REFERENCES) <= set(RECIPES)


@pytest.mark.parametrize(
    ("names", "budget", "message"),
    [
        (["plain", "magic"], 100, "methods names 'magic'; choose among plain"),
        (["plain", "plain"], 100, "methods names 'plain' twice"),
        (["plain"], 5, "budget is 5, but method 'plain' takes at least 6"),
    ],
)
def test_errors_are_clear(tiny_pipe, names, budget, message):
    with pytest.raises(ValueError, match=message):
        build_methods(names, budget, tiny_pipe)
