"""SMC with the steps of a few-step model, beside the best of plain samples by the same steps, at equal cost."""

from __future__ import annotations

from functools import cache

import pytest
from torch import Tensor

from diamond_diffusers import SMC, BestOfN, GlassTransition, PosteriorSMC, RenoiseTransition
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.budget import fit_to_budget
from diamond_diffusers.alignment.random_source import RandomSource

from ..core.mixture import make_mixture, seeded, standard_error
from ..core.mixture_model import MixtureMapFamily, MixtureModel, QuadraticReward, law_of, unconditional
from ..documentation import documented
from .runs import falling_levels

IMAGES, STEPS, SCALE = 400, 4, 4.0
MIXTURE = make_mixture(3)
REWARD = QuadraticReward({"": (0.9, -0.7, 0.6)})
OPTIONS = {
    "by default": SMC(),
    "of other models": SMC(num_valuations=4, resampling_threshold=0.5, default_selection="sample"),
}
BUDGETS = {"16 evaluations": (16, None), "64 evaluations": (64, None), "8 scores": (None, 8), "16 scores": (None, 16)}


@cache
def rewards(method: Method, max_network_evaluations: int | None, max_reward_calls: int | None) -> Tensor:
    """Of the images that a call would return, `[IMAGES]`."""
    law = law_of(MixtureMapFamily(MIXTURE, num_steps=4), unconditional(IMAGES), [""] * IMAGES, REWARD, SCALE)
    levels, random = falling_levels(STEPS), RandomSource(seeded(0), IMAGES)
    method = fit_to_budget(method.resolve(law.model), law, levels, max_network_evaluations, max_reward_calls)
    result = method.run(law, random.normal(method.num_particles, (3,)), levels, random)
    return result.rewards.gather(1, result.select(method.default_selection, random))[:, 0].double()


def gain(method: Method, budget: str) -> Tensor:
    """Over the best of plain samples at the same budget, image by image."""
    return rewards(method, *BUDGETS[budget]) - rewards(BestOfN(transition=RenoiseTransition()), *BUDGETS[budget])


def test_smc_is_ahead_of_best_of_n_at_equal_evaluations_and_level_at_equal_scores() -> None:
    ahead, level = gain(SMC(), "16 evaluations"), gain(SMC(), "8 scores")
    assert ahead.mean() > 4 * standard_error(ahead)
    assert level.mean() > -2 * standard_error(level)


@pytest.mark.slow
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("options", OPTIONS)
def test_the_documented_gains(options: str, budget: str) -> None:
    (row,) = (cells for cells in documented("options") if cells[0] == options)
    found = gain(OPTIONS[options], budget)
    assert abs(found.mean() - float(row[1 + list(BUDGETS).index(budget)])) < 3 * standard_error(found) + 0.005


def test_the_options_follow_from_who_moves_the_particles() -> None:
    few_step, ordinary = MixtureMapFamily(MIXTURE), MixtureModel(MIXTURE)
    both = MixtureMapFamily(MIXTURE, MixtureModel(MIXTURE))
    found = SMC(1).resolve(few_step)
    assert found.transition == RenoiseTransition() and found.default_selection == "best"
    assert (found.num_valuations, found.resampling_threshold) == (1, 1.0)
    general = {"num_valuations": 4, "resampling_threshold": 0.5, "default_selection": "sample"}
    for method, model in (
        (SMC(), ordinary),
        (SMC(transition=RenoiseTransition()), few_step),
        (SMC(transition=GlassTransition(2)), both),
    ):
        assert {name: getattr(method.resolve(model), name) for name in general} == general
    assert SMC(num_valuations=2).resolve(few_step).num_valuations == 2
    assert SMC(default_selection="all").resolve(few_step).default_selection == "all"
    assert PosteriorSMC().resolve(_with_map()).num_valuations == 4


def _with_map() -> MixtureModel:
    from ..core.test_diamond import DiamondMixture

    return DiamondMixture(MIXTURE)
