"""A budget of network evaluations sets the count of any method, and is never exceeded."""

from dataclasses import replace

import pytest
import torch

from diamond_diffusers import (
    SMC,
    BeamSearch,
    BestOfN,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    NoiseEvolution,
    NoiseOptimization,
    PathSearch,
    RandomSearch,
    RolloverSearch,
    ValueDecoding,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.budget import Budget, cost_of_image, fit_to_budget, largest_within
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.cost import Cost
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.rewards import Brightness, CallableReward, Reward

from ..conftest import redness
from ..core.mixture import make_mixture
from ..core.mixture_model import LINEAR, MixtureModel, law_of, make_law, make_map_law
from .runs import COARSE_LEVELS, run

MIXTURE = make_mixture(3)
LOOK_AHEADS = GlassPosterior(num_inner_steps=2, num_samples=2)
BUDGET = 113
"""Of an image; prime, so that no count is a whole share of it."""
MAX_SCORES = 31
"""Likewise."""

METHODS = {
    "best_of_n": BestOfN(),
    "random_search": RandomSearch(round_size=3),
    "zero_order_search": ZeroOrderSearch(),
    "beam_search": BeamSearch(branching=3),
    "beam_search with look-aheads": BeamSearch(branching=3, posterior=LOOK_AHEADS, transition=GlassTransition(2)),
    "path_search": PathSearch(branching=3),
    "rollover_search": RolloverSearch(),
    "value_decoding": ValueDecoding(block_size=2),
    "smc": SMC(),
    "smc with look-aheads": SMC(posterior=LOOK_AHEADS),
    "guidance": Guidance(),
    "pathwise guidance": Guidance(guide=Guide("pathwise")),
    "noise_optimization": NoiseOptimization(),
    "noise_evolution": NoiseEvolution(num_perturbations=1),
}


def guided_law():
    """Two images under classifier-free guidance."""
    offsets = {"offset": torch.zeros(2, 1)}
    return law_of(MixtureModel(MIXTURE), Conditions(offsets, offsets, 2.0), [""] * 2, LINEAR)


LAWS = {"guided": guided_law, "few-step": lambda: make_map_law(MIXTURE, LINEAR, num_images=2, num_steps=1)}
CASES = [
    *((name, "guided") for name in METHODS),
    # Look-aheads ask the score model.
    *((name, "few-step") for name in ("random_search", "beam_search with look-aheads", "smc with look-aheads")),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_budget_is_filled_as_far_as_one_more_allows(name, kind):
    law, larger = LAWS[kind](), LAWS[kind]()
    fitted = fit_to_budget(METHODS[name], law, COARSE_LEVELS, BUDGET)
    assert law.cost.network_evaluations == 0
    count = getattr(fitted, fitted.grows)
    # Nothing else has changed, and one more is too dear.
    assert replace(fitted, **{fitted.grows: getattr(METHODS[name], fitted.grows)}) == METHODS[name]
    run(fitted, law)
    run(replace(fitted, **{fitted.grows: count + 1}), larger)
    assert law.cost.equivalent_evaluations <= 2 * BUDGET < larger.cost.equivalent_evaluations
    planned = cost_of_image(fitted, law, COARSE_LEVELS).as_dict()
    spent = law.cost.as_dict()
    assert all(spent[key] == 2 * planned[key] for key in spent if key != "seconds")


BY_DEFAULT = ("best_of_n", "beam_search with look-aheads", "smc", "guidance", "path_search")


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*case, marks=[] if case[0] in BY_DEFAULT else pytest.mark.slow) for case in CASES],
)
def test_a_budget_of_scores_is_filled_as_far_as_one_more_allows(name, kind):
    law, larger = LAWS[kind](), LAWS[kind]()
    fitted = fit_to_budget(METHODS[name], law, COARSE_LEVELS, max_reward_calls=MAX_SCORES)
    count = getattr(fitted, fitted.grows)
    assert replace(fitted, **{fitted.grows: getattr(METHODS[name], fitted.grows)}) == METHODS[name]
    run(fitted, law)
    run(replace(fitted, **{fitted.grows: count + 1}), larger)
    assert law.cost.reward_calls <= 2 * MAX_SCORES < larger.cost.reward_calls


def test_of_two_budgets_the_tighter_one_counts():
    def candidates(*budgets):
        return fit_to_budget(RandomSearch(), make_law(MIXTURE), COARSE_LEVELS, *budgets).num_candidates

    alone = candidates(BUDGET)
    assert candidates(None, 7) == candidates(BUDGET, 7) == 7 < alone == candidates(BUDGET, 100)


def test_what_does_not_rise_with_the_size_sets_no_bound():
    """As the scores of best-of-N do not with the number of steps."""
    budget = Budget(max_network_evaluations=40, max_reward_calls=8)
    assert budget.largest(lambda steps: Cost(network_evaluations=4 * steps, reward_calls=4)) == 10
    with pytest.raises(ValueError, match="a size of 1 costs 4 and one of 2 costs 4"):
        Budget(max_reward_calls=8).largest(lambda steps: Cost(network_evaluations=4 * steps, reward_calls=4))


def test_too_few_scores_are_named():
    law = make_law(MIXTURE, LINEAR)
    least = cost_of_image(BeamSearch(num_particles=1, branching=4), law, COARSE_LEVELS).reward_calls
    fit_to_budget(BeamSearch(branching=4), law, COARSE_LEVELS, max_reward_calls=least)
    with pytest.raises(ValueError, match=f"max_reward_calls is {least - 1}, but .* BeamSearch needs at least {least}"):
        fit_to_budget(BeamSearch(branching=4), law, COARSE_LEVELS, 10_000, least - 1)


class Judge(Reward):
    """One whose scores cost something."""

    name = "judge"
    differentiable = False

    def __init__(self):
        self.num_images = 0

    def score(self, images, prompts):
        self.num_images += len(images)
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "options", "said"),
    [
        (Judge(), {}, "Reward 'judge' will be asked for 201 scores of each image by BestOfN in 1 steps"),
        (Judge(), {"alignment": BestOfN(num_particles=200)}, None),
        (Judge(), {"max_reward_calls": 201}, None),
        (2 * Judge() + Brightness(), {}, "Reward '2*judge + brightness' will be asked for 201 scores"),
        (Brightness(), {}, None),
        (redness, {}, None),
        (CallableReward(redness, is_free=False), {}, "Reward 'redness' will be asked for 201 scores"),
    ],
)
def test_a_run_says_before_that_it_asks_for_many_scores(shared_pipe, caplog, reward, options, said):
    options = {"alignment": BestOfN(num_particles=201), **options}
    asked = reward.num_images if isinstance(reward, Judge) else 0
    with shared_pipe.iterate("a star", reward=reward, num_inference_steps=1, **options):
        warnings = [record.getMessage() for record in caplog.records if "will be asked" in record.getMessage()]
        assert len(warnings) == (said is not None) and all(said in warning for warning in warnings)
    if isinstance(reward, Judge):
        # Those of the trial alone: counting asks nobody.
        assert reward.num_images == asked + 1


def test_a_method_that_cannot_be_counted_runs_all_the_same(shared_pipe):
    class Peculiar(BestOfN):
        def step(self, law, cloud, interval, random):
            assert cloud.x.ndim == 3
            return super().step(law, cloud, interval, random)

    out = shared_pipe("a star", reward=Judge(), alignment=Peculiar(num_particles=2), num_inference_steps=1)
    assert len(out.images) == 1


@pytest.mark.parametrize("name", ["noise_optimization", "noise_evolution"])
def test_noise_ascents_cost_what_searches_cost_by_default(name):
    def price(method):
        return cost_of_image(method, guided_law(), COARSE_LEVELS).equivalent_evaluations

    assert price(as_method(name)) == price(as_method("random_search"))


def test_plain_sampling_has_nothing_to_buy():
    law, plain = make_law(MIXTURE), NoAlignment()
    assert fit_to_budget(plain, law, COARSE_LEVELS, 1000) is plain


@pytest.mark.parametrize(
    ("alignment", "least"),
    [(NoAlignment(), 5), (BestOfN(), 5), (BeamSearch(branching=4), 1 + 4 * 4), (SMC(), 5)],
    ids=str,
)
def test_too_small_a_budget_is_named(alignment, least):
    law = make_law(MIXTURE, LINEAR)
    fit_to_budget(alignment, law, COARSE_LEVELS, least)
    message = (
        f"max_network_evaluations is {least - 1}, but an image of {type(alignment).__name__} takes at least {least}"
    )
    with pytest.raises(ValueError, match=message):
        fit_to_budget(alignment, law, COARSE_LEVELS, least - 1)


@pytest.mark.parametrize(
    "price",
    [lambda size: 3 * size + 1, lambda size: size**2, lambda size: 10 * size**0.5],
    ids=["linear", "convex", "concave"],
)
def test_the_largest_size_within_a_budget_is_found(price):
    for budget in range(1, 60):
        expected = max([size for size in range(1, 100) if price(size) <= budget], default=1)
        assert largest_within([(budget, price)]) == expected


def test_a_price_that_does_not_rise_is_an_error():
    with pytest.raises(ValueError, match="a size of 1 costs 5 and one of 2 costs 5"):
        largest_within([(100, lambda size: 5)])


@pytest.mark.parametrize("name", ["best_of_n", "beam_search", "path_search", "random_search", "zero_order_search"])
def test_the_pipeline_takes_a_budget_in_place_of_a_count(shared_pipe, name):
    """Three steps under classifier-free guidance."""
    out = shared_pipe(
        ["a circle", "a star"],
        reward=redness,
        alignment=name,
        max_network_evaluations=61,
        output_type="latent",
        generator=[torch.Generator().manual_seed(i) for i in range(2)],
    )
    assert len(out.images) == 2
    assert 2 * 30 < out.cost.network_evaluations <= 2 * 61
    with pytest.raises(ValueError, match="max_network_evaluations is 5, but an image of"):
        shared_pipe("a circle", reward=redness, alignment=name, max_network_evaluations=5)


def test_the_pipeline_takes_a_budget_of_scores(shared_pipe):
    reward = Judge()
    options = {"reward": reward, "num_inference_steps": 2, "output_type": "latent"}
    out = shared_pipe(["a circle", "a star"], alignment="smc", max_reward_calls=5, **options)
    # Two scores of a particle, and the trial of the reward before the run.
    assert out.alignment.num_particles == 2 and out.cost.reward_calls == reward.num_images == 2 * 4 + 1
    with pytest.raises(
        ValueError, match="max_reward_calls is 1, but an image of SMC needs at least 2 scores in 2 step"
    ):
        shared_pipe("a circle", alignment="smc", max_reward_calls=1, **options)
