"""Searches against closed forms, their gain and their cost, and what a reward scale of 0 returns."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from diamond_diffusers import (
    AncestralTransition,
    BeamSearch,
    BestOfN,
    FlowMapTransition,
    GlassPosterior,
    GlassTransition,
    NoAlignment,
    ODETransition,
    PathSearch,
    RandomSearch,
    RenoiseTransition,
    RolloverSearch,
    ValueDecoding,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.core.model import Conditions

from ..core.exact_transition import ExactTransition
from ..core.mixture import GaussianMixture, make_gaussian, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, MixtureModel, QuadraticReward, at_rows, law_of, make_law, make_map_law
from .runs import COARSE_LEVELS, ENDED, falling_levels, run

MIXTURE = make_mixture(3)
GAUSSIAN = make_gaussian()
LEVELS = falling_levels(8)
DIRECTION = LINEAR.linear[""]
LOOK_AHEADS = GlassPosterior(num_inner_steps=2, num_samples=2)


def best_rewards(alignment, law, levels=LEVELS, **options):
    """The reward of the sample of each image that is returned by default, `[B]`."""
    return run(alignment, law, levels, **options).rewards.double().amax(1)


class PivotLaw:
    """The law of a standard normal number that fresh ones may replace if they are larger, on a grid."""

    def __init__(self):
        edges = np.linspace(-7, 9, 1601)
        self.upper = edges[1:]
        self.middles = (edges[1:] + edges[:-1]) / 2
        self.masses = np.diff(ndtr(edges))

    def improve(self, count, step_size=1.0):
        """The largest of it and of `count` neighbours `sqrt(1 - step_size^2) pivot + step_size fresh`."""
        centres = math.sqrt(1 - step_size**2) * self.middles
        below = ndtr((self.upper[:, None] - centres) / step_size) ** count * (self.middles <= self.upper[:, None])
        self.masses = np.diff(below @ self.masses, prepend=0.0)

    @property
    def mean(self):
        return self.masses @ self.middles


def mean_maximum(count):
    """`E[max]` of `count` standard normals."""
    law = PivotLaw()
    law.improve(count - 1)
    return law.mean


def linear_oracle(levels=LEVELS):
    """The reward of a normal law's plain sample is `offset + slope . x` in its noise `x`."""
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    offset, *values = run(NoAlignment(), make_law(GAUSSIAN, LINEAR, num_images=4), levels, x=x).rewards[:, 0].double()
    return offset, torch.stack(values) - offset


def is_mean(draws, expected):
    """Whether independent draws have this mean, within four standard errors."""
    return bool((draws.mean() - expected).abs() < 4 * standard_error(draws))


def test_the_law_of_a_pivot_is_right():
    assert mean_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-3)
    assert mean_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-3)


@pytest.mark.parametrize(
    "alignment",
    [
        BestOfN(num_particles=4),
        RandomSearch(num_candidates=4, round_size=3),
        RandomSearch(num_candidates=4, round_size=20),
    ],
    ids=str,
)
def test_independent_candidates_gain_the_mean_of_their_maximum(alignment):
    offset, slope = linear_oracle()
    rewards = best_rewards(alignment, make_law(GAUSSIAN, LINEAR, num_images=2000))
    assert is_mean(rewards, offset + slope.norm() * mean_maximum(4))
    # One candidate more or less would show.
    for other in (3, 5):
        assert not is_mean(rewards, offset + slope.norm() * mean_maximum(other))


@pytest.mark.parametrize(("step_size", "others"), [(0.3, (0.2, 0.4)), (0.8, (0.6, 1.0))])
def test_zero_order_search_climbs_as_a_chain_of_pivots_does(step_size, others):
    """Only the part of the noise along the slope matters, and that is a number of its own."""
    offset, slope = linear_oracle()
    rewards = best_rewards(
        ZeroOrderSearch(num_candidates=12, round_size=4, step_size=step_size),
        make_law(GAUSSIAN, LINEAR, num_images=2000),
    )
    means = {}
    for size in (step_size, *others):
        law = PivotLaw()
        for count in (3, 4, 4):
            law.improve(count, size)
        means[size] = offset + slope.norm() * law.mean
    holds = [is_mean(rewards, mean) for mean in means.values()]
    assert holds == [True, False, False]


@pytest.mark.parametrize(
    "alignment",
    [
        RandomSearch(num_candidates=10, round_size=4),
        ZeroOrderSearch(num_candidates=10, round_size=4),
        ZeroOrderSearch(num_candidates=7, round_size=3),
    ],
    ids=str,
)
def test_the_best_of_all_noises_is_returned(alignment):
    seen = []
    law = make_law(GAUSSIAN, LINEAR, num_images=5)
    result = run(alignment, law, on_step=lambda index, x: seen.append(x.unflatten(0, (5, -1))))
    tried = torch.cat(seen, 1)
    assert len(seen) == len(result.trace.steps) == alignment.num_stages(law, COARSE_LEVELS)
    assert tried.shape == (5, alignment.num_candidates, 3)
    rewards = tried.double() @ DIRECTION
    best = rewards.argmax(1)
    assert (best > 0).any()
    torch.testing.assert_close(result.latents[:, 0], tried[torch.arange(5), best])
    torch.testing.assert_close(result.rewards[:, 0].double(), rewards.amax(1), atol=1e-5, rtol=0)
    figures = torch.stack([step.best_value for step in result.trace.steps]).amax(0)
    torch.testing.assert_close(figures, result.rewards[:, 0])


def test_beam_search_gains_the_maximum_of_each_step():
    """Of one particle on a normal law: the mean of `b . z` given the particle grows by the best of B increments.

    The increments are normal, with the variance by which the step narrows the posterior of `b . z`.
    """
    branching = 4
    variances = [DIRECTION @ GAUSSIAN.covariance @ DIRECTION]
    for level in COARSE_LEVELS[1:-1]:
        variances.append(DIRECTION @ GAUSSIAN.posterior(torch.zeros(3), level).covariance @ DIRECTION)
    variances.append(torch.zeros(()))
    spread = sum((wide - narrow).sqrt() for wide, narrow in pairwise(variances))
    search = BeamSearch(num_particles=1, branching=branching, transition=ExactTransition(GAUSSIAN))
    rewards = best_rewards(search, make_law(GAUSSIAN, LINEAR, num_images=600), COARSE_LEVELS)
    centre = DIRECTION @ GAUSSIAN.mean
    assert is_mean(rewards, centre + mean_maximum(branching) * spread)
    for other in (branching - 1, branching + 1):
        assert not is_mean(rewards, centre + mean_maximum(other) * spread)


@pytest.mark.parametrize("highest", [0.8, math.inf])
def test_path_search_climbs_as_a_chain_of_pivots_does(highest):
    """Along exact paths of `N(0, s^2 I)`, `b . y` over its deviation is the same at all levels.

    Noised forward it becomes a neighbour, whose share of fresh noise is that in the variance at the height.
    """
    deviation, levels = 0.7, (math.inf, 3.0, 1.2, 0.5, 0.2, 0.0)
    covariance = deviation**2 * torch.eye(3, dtype=torch.float64)
    law = GaussianMixture(torch.zeros(1, dtype=torch.float64), torch.zeros(1, 3).double(), covariance[None])
    law = make_map_law(law, LINEAR, num_images=1500, has_scores=False, num_steps=4)
    search = PathSearch(1, 3, transition=FlowMapTransition(), max_noise_to_signal=highest, forward_step=0.3)
    rewards = best_rewards(search, law, levels)
    means = {}
    for branches in (2, 1, 3):
        pivot = PivotLaw()
        for level in levels[1:-1]:
            if level <= highest:
                time = level / (1 + level) + 0.3
                height = time / (1 - time) if time < 1 else math.inf
                kept = (deviation**2 + level**2) / (deviation**2 + height**2)
                pivot.improve(branches, math.sqrt(1 - kept))
        means[branches] = deviation * DIRECTION.norm() * pivot.mean
    assert [is_mean(rewards, mean) for mean in means.values()] == [True, False, False]


def test_rounds_are_compared_under_one_law():
    law = make_law(MIXTURE, LINEAR)
    random = RandomSource(seeded(0), 1)
    stages = RandomSearch(num_candidates=4, round_size=2).iterate(law, random.normal(1, (3,)), LEVELS, random)
    progress = next(stages)
    progress.law = replace(law, reward_scale=2.0)
    with pytest.raises(ValueError, match=r"progress\.law was replaced"):
        next(stages)


def test_only_the_end_of_the_run_is_called_the_last_step():
    """The way back of a detour ends with a step like any other."""
    steps = []

    @dataclass(frozen=True)
    class Watched(ODETransition):
        def step(self, network, x, interval, predicted, noise):
            steps.append(interval)
            return super().step(network, x, interval, predicted, noise)

    run(PathSearch(1, 2, transition=Watched()), make_law(MIXTURE, LINEAR), COARSE_LEVELS)
    detours = [step for step in steps if step.start not in COARSE_LEVELS]
    assert detours and not any(step.is_last for step in detours)
    assert all(step.is_last == (step.end == COARSE_LEVELS[-1]) for step in steps)


def test_a_rare_optimum_is_found():
    """A tenth of the law lies where the reward is 2, the rest around -1."""
    means = torch.tensor([[-1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], dtype=torch.float64)
    covariances = 0.01 * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    law = GaussianMixture(torch.tensor([0.9, 0.1], dtype=torch.float64).log(), means, covariances)
    reward = QuadraticReward({"": (1.0, 0.0, 0.0)})
    plain = best_rewards(NoAlignment(), make_law(law, reward, num_images=40))
    assert (plain < 0).double().mean() > 0.75
    for search in (
        BeamSearch(4, 6),
        PathSearch(4, 6),
        RandomSearch(num_candidates=96, round_size=32),
        ZeroOrderSearch(num_candidates=64, round_size=16),
    ):
        found = best_rewards(search, make_law(law, reward, num_images=40, reward_scale=3.0))
        torch.testing.assert_close(found, torch.full_like(found, 2.0), atol=0.6, rtol=0)


GROWING = {
    "best of n": [BestOfN(num_particles=count) for count in (1, 4, 16)],
    "random search": [RandomSearch(num_candidates=count) for count in (1, 4, 16)],
    "zero-order search": [ZeroOrderSearch(num_candidates=count) for count in (1, 4, 16)],
    "beam search": [BeamSearch(1, count) for count in (1, 2, 6)],
    "path search": [PathSearch(1, count) for count in (1, 2, 6)],
}


@pytest.mark.parametrize("name", GROWING)
def test_more_search_gains_more_reward_at_more_cost(name):
    num_images, results, costs = 300, [], []
    for alignment in GROWING[name]:
        law = make_law(MIXTURE, LINEAR, num_images=num_images)
        results.append(best_rewards(alignment, law))
        costs.append(law.cost.network_evaluations / num_images)
    assert costs[0] == len(LEVELS) - 1 < costs[1] < costs[2]
    for less, more in pairwise(results):
        assert (more - less).mean() > 4 * standard_error(more - less)


# Per image, by steps T, width W and branches B: evaluations, and decodes.
T = len(COARSE_LEVELS) - 1
COSTS = {
    "best of n": (BestOfN(num_particles=5), 5 * T, 5),
    "random search": (RandomSearch(num_candidates=5, round_size=2), 5 * T, 5),
    "two zero-order searches": (ZeroOrderSearch(num_candidates=5, round_size=2, num_particles=2), 10 * T, 10),
    "beam search": (BeamSearch(3, 4), 3 + (T - 1) * 12, (T - 1) * 12 + 3),
    "beam search to a random end": (
        BeamSearch(3, 4, LOOK_AHEADS, GlassTransition(2)),
        3 + T * 12 + (T - 1) * 12 * (1 + 2),
        (T - 1) * 12 * 2 + 12,
    ),
    "one branch": (BeamSearch(3, 1), 3 * T, 3),
    # It branches at the levels 0.5 and 0.2, of which the last has no look-aheads.
    "path search": (PathSearch(3, 4, max_noise_to_signal=1.0), 4 * 3 + 2 * 9 * 3 + 12, 12 + 12),
    "path search of longer ways": (
        PathSearch(3, 4, LOOK_AHEADS, max_noise_to_signal=0.3, num_backward_steps=4),
        4 * 3 + 9 * 5 + 3,
        12,
    ),
}


@pytest.mark.parametrize("is_guided", [False, True], ids=["", "classifier-free guidance"])
@pytest.mark.parametrize("name", COSTS)
def test_costs_are_exact(name, is_guided):
    alignment, evaluations, decodes = COSTS[name]
    family, offsets = MixtureModel(MIXTURE), {"offset": torch.zeros(2, 1)}
    conditions = Conditions(offsets, offsets if is_guided else None, 2.0)
    reward = QuadraticReward({"": (1.0, 0.0, 0.0)})
    law = law_of(family, conditions, [""] * 2, reward)
    run(alignment, law)
    assert law.cost.network_evaluations == family.evaluations == 2 * evaluations * (2 if is_guided else 1)
    assert law.cost.decodes == family.decoded == law.cost.reward_calls == reward.calls == 2 * decodes
    assert law.cost.backward_passes == 0
    assert law.cost.seconds > 0


STOCHASTIC = [GlassTransition(), GlassTransition(2), AncestralTransition(), RenoiseTransition()]
PLAIN = [
    *(BestOfN(transition, 3) for transition in (ODETransition(), *STOCHASTIC)),
    *(BeamSearch(2, 3, LOOK_AHEADS, transition) for transition in STOCHASTIC),
    *(PathSearch(2, 3, transition=transition) for transition in (ODETransition(), *STOCHASTIC)),
    *(RolloverSearch(2, 3, LOOK_AHEADS, transition) for transition in STOCHASTIC[1:3]),
    *(
        ValueDecoding(2, 3, LOOK_AHEADS, transition, block_size)
        for transition in STOCHASTIC[1:3]
        for block_size in (1, 2)
    ),
    *(
        RandomSearch(num_candidates=5, round_size=2, transition=transition)
        for transition in (ODETransition(), *STOCHASTIC)
    ),
    *(
        ZeroOrderSearch(num_candidates=5, round_size=2, transition=transition, num_particles=2)
        for transition in (ODETransition(), *STOCHASTIC)
    ),
]


@pytest.mark.parametrize("alignment", PLAIN, ids=str)
def test_a_reward_scale_of_zero_returns_the_plain_sample(alignment):
    options = {"num_images": 3, "particle_batch_size": 4}
    plain = run(NoAlignment(alignment.transition), make_law(MIXTURE, LINEAR, **options), seed=[1, 2, 3])
    result = run(alignment, make_law(MIXTURE, LINEAR, reward_scale=0.0, **options), seed=[1, 2, 3])
    chosen = result.select(alignment.default_selection, None)[:, 0]
    assert torch.equal(result.latents[torch.arange(3), chosen], plain.latents[:, 0])
    aligned = run(alignment, make_law(MIXTURE, LINEAR, reward_scale=2.0, **options), seed=[1, 2, 3])
    assert not torch.equal(
        aligned.latents.gather(1, aligned.rewards.argmax(1)[:, None, None].expand(-1, -1, 3)), plain.latents
    )


@pytest.mark.parametrize("alignment", [alignments[2] for alignments in GROWING.values()], ids=str)
def test_a_negative_reward_scale_searches_for_little_reward(alignment):
    law = make_law(MIXTURE, LINEAR, num_images=50, reward_scale=-1.0)
    result = run(alignment, law)
    chosen = result.select(alignment.default_selection, None)
    assert torch.equal(chosen[:, 0], result.rewards.argmin(1))
    plain = run(NoAlignment(), make_law(MIXTURE, LINEAR, num_images=50)).rewards
    assert (result.rewards.gather(1, chosen).mean() - plain.mean()) < -0.5


def test_rewards_and_images_are_those_of_the_latents_that_are_returned():
    for alignment in (
        BeamSearch(3, 2, transition=GlassTransition(2)),
        PathSearch(3, 2),
        ZeroOrderSearch(num_candidates=6, num_particles=3),
    ):
        law = make_law(MIXTURE, LINEAR, num_images=4)
        result = run(alignment, law)
        expected = at_rows(law, 3).evaluate(result.latents.flatten(0, 1))
        torch.testing.assert_close(result.rewards.flatten(), expected.total)
        torch.testing.assert_close(result.images.flatten(0, 1), expected.images)
        torch.testing.assert_close(result.reward_terms["quadratic"].flatten(), expected.total)


def test_a_callback_may_end_a_search_over_noises_but_not_replace_its_samples():
    def stop_after_the_second(index, x):
        if index == 1:
            return ENDED

    search = ZeroOrderSearch(num_candidates=9, round_size=3)
    law = make_law(MIXTURE, LINEAR, num_images=2)
    ended = run(search, law, on_step=stop_after_the_second)
    assert len(ended.trace.steps) == 2 and law.cost.network_evaluations == 2 * 6 * T
    assert torch.equal(
        ended.latents,
        run(ZeroOrderSearch(num_candidates=6, round_size=3), make_law(MIXTURE, LINEAR, num_images=2)).latents,
    )
    with pytest.raises(ValueError, match="callback_on_step_end returned other latents"):
        run(search, law, on_step=lambda index, x: x)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (BeamSearch, {"num_particles": 0}, "num_particles is 0"),
        (BeamSearch, {"branching": 0}, "branching is 0; give a whole number of at least 1"),
        (BeamSearch, {"transition": ODETransition()}, "draws no noise, so the branches"),
        (PathSearch, {"branching": 0}, "branching is 0"),
        (PathSearch, {"forward_step": 0.0}, r"forward_step is 0\.0; give a number between 0 and 1"),
        (PathSearch, {"forward_step": 1.0}, r"forward_step is 1\.0"),
        (PathSearch, {"num_backward_steps": 0}, "num_backward_steps is 0"),
        (PathSearch, {"max_noise_to_signal": 0.0}, r"max_noise_to_signal is 0\.0; give a number above 0"),
        (RandomSearch, {"num_candidates": 0}, "num_candidates is 0"),
        (RandomSearch, {"round_size": 0}, "round_size is 0"),
        (ZeroOrderSearch, {"step_size": 0.0}, r"step_size is 0\.0; give a number above 0"),
        (ZeroOrderSearch, {"step_size": 1.5}, r"step_size is 1\.5"),
    ],
)
def test_bad_options_are_named(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)
