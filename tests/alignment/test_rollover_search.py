"""Rollover budget forcing: what each step draws, to the candidate, and how far its rewards rise."""

import random
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import (
    AncestralTransition,
    BestOfN,
    GlassTransition,
    NoAlignment,
    ODETransition,
    Reward,
    RolloverSearch,
)
from diamond_diffusers.alignment.budget import fit_to_budget
from diamond_diffusers.alignment.random_source import RandomSource

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_gaussian, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, MixtureModel, law_of, make_law, unconditional
from .runs import COARSE_LEVELS, falling_levels, run

MIXTURE, GAUSSIAN = make_mixture(3), make_gaussian()
DIRECTION = LINEAR.linear[""]
T = len(COARSE_LEVELS) - 1


class Scripted(Reward):
    """Scores in the order in which they are asked for."""

    name = "scripted"

    def __init__(self, scores):
        self.scores = iter(scores)

    def score(self, images, prompts):
        return torch.tensor([next(self.scores) for _ in prompts])


# Of one search with a quota of 3: the scores of each step, the value that it keeps, and how many it draws. The last
# step is not random.
SCRIPTS = {
    "what is saved goes to the next step, and is spent there or lost": [
        ([0.1, 0.5, 0.2], None, 3),
        ([0.6], 0.6, 1),
        ([0.1, 0.2, 0.3, 0.1, 0.7], 0.7, 5),
        ([0.1, 0.2, 0.1], 0.2, 3),
        ([0.9, 0.1, 0.95], 0.95, 3),
    ],
    "savings add up, and the last choice spends them all": [
        ([0.1, 0.0, 0.0], None, 3),
        ([0.2], 0.2, 1),
        ([0.1, 0.3], 0.3, 2),
        ([0.3, 0.2, 0.4], 0.4, 3),
        ([0.5, 0.6, 0.1, 0.2, 0.3, 0.4], 0.6, 6),
    ],
    "a step that falls short of the record keeps its best, and the record stays": [
        ([0.9, 0.1, 0.2], None, 3),
        ([0.3, 0.4, 0.2], 0.4, 3),
        ([0.5, 0.8, 0.7], 0.8, 3),
        ([0.95], 0.95, 1),
        ([0.5, 0.4, 0.1, 0.2, 0.3], 0.5, 5),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_quotas_roll_over(name):
    script = SCRIPTS[name]
    scores = [score for step, _, _ in script for score in step]
    law = make_law(MIXTURE, Scripted([*scores, 2.0]))
    source = RandomSource(seeded(0), 1)
    search, spent, kept = RolloverSearch(num_candidates=3, transition=GlassTransition()), [0], []
    for progress in search.iterate(law, source.normal(1, (3,)), COARSE_LEVELS, source):
        spent.append(progress.cost.network_evaluations)
        kept.append(round(progress.values.item(), 6))
    start, *drawn = [count for *_, count in script]
    assert [after - before for before, after in pairwise(spent)] == [start + drawn[0], *drawn[1:], 0]
    assert kept == [value for _, value, _ in script[1:]] + [2.0]
    assert spent[-1] == T * search.num_candidates


@pytest.mark.parametrize("rewards", ["rising", "falling", "any"])
def test_what_a_run_costs_does_not_depend_on_its_rewards(rewards):
    """Of images and searches whose steps end at different candidates, too."""
    draws = random.Random(1)
    scores = {"rising": range(10_000), "falling": range(0, -10_000, -1), "any": (draws.random() for _ in range(10_000))}
    num_images, searches, quota = 4, 2, 3
    law = make_law(MIXTURE, Scripted(map(float, scores[rewards])), num_images=num_images)
    run(RolloverSearch(searches, quota, transition=AncestralTransition()), law)
    assert law.cost.network_evaluations == num_images * searches * T * quota
    assert law.cost.reward_calls == law.cost.decodes == num_images * searches * (T * quota + 1)
    # A candidate of two inner steps takes one evaluation more, which is all that one of the last step takes.
    law = make_law(MIXTURE, Scripted(map(float, [draws.random() for _ in range(1000)])), num_images=num_images)
    run(RolloverSearch(searches, quota, transition=GlassTransition(2)), law)
    assert law.cost.network_evaluations == num_images * searches * quota * (1 + 2 * (T - 1) + 1)
    assert law.cost.reward_calls == num_images * searches * quota * (1 + T)


class GuidedInPart(MixtureModel):
    """Whose evaluations at the first or the last levels cost twice as much."""

    def __init__(self, is_dear):
        super().__init__(MIXTURE)
        self.is_dear = is_dear

    def evaluations_per_row(self, noise_to_signal, conditions):
        return 1 + self.is_dear(float(noise_to_signal))


@pytest.mark.parametrize(
    ("dear", "name", "limit", "saves"),
    [
        # What cheap levels save would buy too many evaluations at dear ones, and the other way round too many scores.
        (lambda level: level < 1, "max_network_evaluations", 42, True),
        (lambda level: level > 1, "max_reward_calls", 21, True),
        # A run that saves nothing costs the most, and is what a budget pays for.
        (lambda level: level < 1, "max_reward_calls", 20, False),
    ],
)
def test_savings_keep_to_the_budget_where_levels_differ_in_price(dear, name, limit, saves):
    scores = [*range(7), *range(1000, 1003), *range(0, -10_000, -1)] if saves else range(0, -10_000, -1)
    law = law_of(GuidedInPart(dear), unconditional(), [""], Scripted(map(float, scores)))
    run(fit_to_budget(RolloverSearch(transition=GlassTransition()), law, COARSE_LEVELS, **{name: limit}), law)
    spent = {"max_network_evaluations": law.cost.equivalent_evaluations, "max_reward_calls": law.cost.reward_calls}
    assert spent[name] <= limit


def simulated(quota, spreads, rolls_over=True, count=8000):
    """The mean of a search whose candidates add normal numbers of these deviations to its value, by its definition.

    All steps are random, and the last one has its own quota alone.
    """
    draws, total = random.Random(3), 0.0
    for _ in range(count):
        value = record = 0.0
        saved = 0
        for index, spread in enumerate(spreads):
            candidates, draws_all = [], index >= len(spreads) - 2
            while len(candidates) < quota + saved:
                candidates.append(value + draws.gauss(0, spread))
                if candidates[-1] > record and not draws_all:
                    break
            saved = quota + saved - len(candidates) if rolls_over else 0
            value = max(candidates)
            record = max(record, value)
        total += value
    return total / count


@pytest.mark.slow
def test_a_search_climbs_by_its_rules():
    """On a normal law the mean of `b . z` given the particle, its value, grows by a normal number at each step."""
    quota, levels = 3, falling_levels(4)
    variances = [DIRECTION @ GAUSSIAN.covariance @ DIRECTION]
    for level in levels[1:-1]:
        variances.append(DIRECTION @ GAUSSIAN.posterior(torch.zeros(3), level).covariance @ DIRECTION)
    spreads = [(wide - narrow).sqrt().item() for wide, narrow in pairwise([*variances, torch.zeros(())])]
    search = RolloverSearch(num_candidates=quota, transition=ExactTransition(GAUSSIAN))
    gains = run(search, make_law(GAUSSIAN, LINEAR, num_images=600), levels).rewards[:, 0] - DIRECTION @ GAUSSIAN.mean

    def is_mean(expected):
        return bool((gains.mean() - expected).abs() < 4 * standard_error(gains))

    assert is_mean(simulated(quota, spreads))
    assert not is_mean(simulated(quota - 1, spreads))
    assert not is_mean(simulated(quota + 1, spreads))
    assert not is_mean(simulated(quota, spreads, rolls_over=False))


def test_it_is_above_best_of_n_at_equal_cost():
    levels, num_images = falling_levels(6), 40
    rewards = {}
    for alignment in (NoAlignment(), BestOfN(num_particles=4), RolloverSearch(num_candidates=4)):
        law = make_law(MIXTURE, LINEAR, num_images=num_images)
        rewards[type(alignment)] = run(alignment, law, levels).rewards.amax(1)
        assert law.cost.network_evaluations == num_images * 6 * (1 if type(alignment) is NoAlignment else 4)
    for lower in (NoAlignment, BestOfN):
        gain = rewards[RolloverSearch] - rewards[lower]
        assert gain.mean() > 4 * standard_error(gain)


def test_rows_of_an_image_draw_from_it_alone():
    """However many rows the others have, and no two rows the same."""
    few, many = RandomSource([seeded(1), seeded(2)], 2), RandomSource([seeded(3), seeded(2)], 2)
    some = few.of_rows(torch.tensor([1, 1])).normal(2, (3,))
    more = many.of_rows(torch.tensor([0, 0, 0, 1, 1])).normal(2, (3,))
    assert torch.equal(more[6:], some)
    assert len(more.unique(dim=0)) == 10
    assert not torch.equal(few.of_rows(torch.tensor([1, 1])).normal(2, (3,)), some)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles is 0"),
        ({"num_candidates": 0}, "num_candidates is 0; give a whole number of at least 1"),
        ({"transition": ODETransition()}, "draws no noise, so the candidates of a step would be the same"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RolloverSearch(**options)
