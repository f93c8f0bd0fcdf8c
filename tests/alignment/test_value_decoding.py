"""Soft value-based decoding and blockwise control against their laws with so many candidates."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from diamond_diffusers import (
    AncestralTransition,
    BeamSearch,
    BestOfN,
    DenoiserPoint,
    GlassTransition,
    ODETransition,
    ValueDecoding,
)
from diamond_diffusers.alignment.budget import fit_to_budget
from diamond_diffusers.alignment.random_source import RandomSource

from ..core.exact_transition import ExactTransition
from ..core.mixture import make_gaussian, make_mixture, seeded, standard_error
from ..core.mixture_model import LINEAR, make_law
from .runs import COARSE_LEVELS, ENDED, falling_levels, run

MIXTURE, GAUSSIAN = make_mixture(3), make_gaussian()
DIRECTION = LINEAR.linear[""]
STEPS = len(COARSE_LEVELS) - 1
SCALE = 1.5


def increments(block_size):
    """Deviations of what each block adds to the mean of `b . z` given the particle, which is normal.

    That mean is the value of the denoiser's point, and differs from the exact value of a normal law by a constant.
    """
    variances = [DIRECTION @ GAUSSIAN.covariance @ DIRECTION]
    for level in COARSE_LEVELS[1:-1]:
        variances.append(DIRECTION @ GAUSSIAN.posterior(torch.zeros(3), level).covariance @ DIRECTION)
    variances.append(torch.zeros(()))
    ends = [*range(0, STEPS, block_size), STEPS]
    return [(variances[start] - variances[end]).sqrt().item() for start, end in pairwise(ends)]


@cache
def mean_chosen(count, sharpness):
    """The mean of one of `count` standard normals that is chosen by the softmax of `sharpness` times them."""
    draws = torch.randn(60_000, count, generator=seeded(5), dtype=torch.float64)
    if math.isinf(sharpness):
        return draws.amax(1).mean().item()
    return (torch.softmax(sharpness * draws, 1) * draws).sum(1).mean().item()


def expected_reward(branching, block_size, temperature):
    gains = [
        spread * mean_chosen(branching, SCALE * spread / temperature if temperature else math.inf)
        for spread in increments(block_size)
    ]
    return (DIRECTION @ GAUSSIAN.mean).item() + sum(gains)


def is_mean(draws, expected):
    return bool((draws.mean() - expected).abs() < 4 * standard_error(draws))


@pytest.mark.parametrize(
    ("block_size", "temperature"),
    [
        (1, 1.0),
        (2, 0.0),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 0.0), (2, 0.5), (STEPS, 0.0)]),
    ],
)
def test_the_choice_among_few_candidates_has_its_law(block_size, temperature):
    decoding = ValueDecoding(1, 4, DenoiserPoint(), ExactTransition(GAUSSIAN), block_size, temperature)
    law = make_law(GAUSSIAN, LINEAR, num_images=1200, reward_scale=SCALE)
    rewards = run(decoding, law).rewards[:, 0].double()
    assert is_mean(rewards, expected_reward(4, block_size, temperature))
    # Fewer candidates, another temperature and, where the highest value is kept, other blocks would show.
    assert not is_mean(rewards, expected_reward(2, block_size, temperature))
    assert temperature > 0 or not is_mean(rewards, expected_reward(4, 3, temperature))
    assert not is_mean(rewards, expected_reward(4, block_size, temperature + 0.5))


def test_many_candidates_sample_the_tilted_law():
    """The optimal soft policy samples `p(z) exp(r(z))`."""
    decoding = ValueDecoding(1, 64, transition=ExactTransition(GAUSSIAN))
    latents = run(decoding, make_law(GAUSSIAN, LINEAR, num_images=500, reward_scale=SCALE)).latents[:, 0].double()
    tilted, _ = LINEAR.tilt(GAUSSIAN, scale=SCALE)
    assert ((latents.mean(0) - tilted.mean).abs() < 4 * standard_error(latents)).all()
    assert not ((latents.mean(0) - GAUSSIAN.mean).abs() < 4 * standard_error(latents)).all()
    # A tilt leaves the width of a normal law as it is, while the highest of many values would narrow it.
    torch.testing.assert_close(latents.var(0), tilted.covariance.diagonal(), rtol=0.25, atol=0)


def test_the_highest_value_of_each_step_is_a_beam_of_one():
    options = {"num_images": 3, "reward_scale": 2.0}
    for transition in (GlassTransition(2), AncestralTransition()):
        beam = run(BeamSearch(1, 5, transition=transition), make_law(MIXTURE, LINEAR, **options), seed=[1, 2, 3])
        decoding = ValueDecoding(1, 5, transition=transition, temperature=0.0)
        decoded = run(decoding, make_law(MIXTURE, LINEAR, **options), seed=[1, 2, 3])
        assert torch.equal(beam.latents, decoded.latents) and torch.equal(beam.rewards, decoded.rewards)


@pytest.mark.parametrize("block_size", [1, 2])
def test_it_is_above_best_of_n_at_equal_cost(block_size):
    levels, num_images, rewards = falling_levels(6), 100, []
    for alignment in (BestOfN(num_particles=4), ValueDecoding(1, 4, block_size=block_size, temperature=0.0)):
        law = make_law(MIXTURE, LINEAR, num_images=num_images)
        rewards.append(run(alignment, law, levels).rewards.amax(1))
        assert law.cost.network_evaluations <= num_images * 6 * 4
    gain = rewards[1] - rewards[0]
    assert gain.mean() > 4 * standard_error(gain)


# Evaluations, and decodes, of three particles of four candidates in five steps, the last of which is not random.
COSTS = {1: (3 + 4 * 12, 4 * 12 + 3), 2: (3 + 4 * 12, 2 * 12 + 3), 3: (3 + 4 * 12, 12 + 12), 9: (3 + 4 * 12, 12)}


@pytest.mark.parametrize("block_size", COSTS)
def test_costs_are_exact(block_size):
    law = make_law(MIXTURE, LINEAR, num_images=2)
    run(ValueDecoding(3, 4, transition=AncestralTransition(), block_size=block_size), law)
    evaluations, decodes = COSTS[block_size]
    assert (law.cost.network_evaluations, law.cost.decodes) == (2 * evaluations, 2 * decodes)
    assert law.cost.reward_calls == law.cost.decodes


@pytest.mark.parametrize("temperature", [1e-40, 5e-324])
def test_the_lowest_temperatures_keep_the_highest_value(temperature):
    """Though values are beyond all numbers in units of them."""
    values = torch.tensor([[0.0, 1.0, 0.5], [-math.inf, 7.0, 8.0], [-9.0, -8.0, -math.inf]])
    kept = ValueDecoding(temperature=temperature).kept(values, RandomSource(seeded(0), 3))
    assert kept.tolist() == [1, 3 + 2, 6 + 1]


def test_a_run_that_ends_within_a_block_returns_its_candidates():
    law = make_law(MIXTURE, LINEAR, num_images=2)
    decoding = ValueDecoding(2, 3, block_size=3)
    seen = []

    def stop_after_the_second(index, x):
        seen.append(len(x))
        return ENDED if index == 1 else None

    result = run(decoding, law, on_step=stop_after_the_second)
    assert seen == [2 * 6, 2 * 6]
    assert result.rewards.shape == result.log_weights.shape == result.latents.shape[:2] == (2, 6)
    whole = run(decoding, make_law(MIXTURE, LINEAR, num_images=2))
    assert whole.rewards.shape == whole.log_weights.shape == (2, 2)


def test_a_run_without_a_random_step_has_nothing_to_buy_candidates_for():
    decoding, law = ValueDecoding(branching=20), make_law(MIXTURE, LINEAR)
    one_step = (math.inf, 0.0)
    assert fit_to_budget(decoding, law, one_step, 7) == fit_to_budget(decoding, law, one_step, None, 1) == decoding
    assert fit_to_budget(decoding, law, COARSE_LEVELS, 7).branching == 1
    with pytest.raises(ValueError, match=r"max_network_evaluations is 1, but .* takes at least 5"):
        fit_to_budget(decoding, law, COARSE_LEVELS, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branching": 0}, "branching is 0"),
        ({"block_size": 0}, "block_size is 0; give a whole number of at least 1"),
        ({"temperature": -1.0}, r"temperature is -1\.0; give a number of at least 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"transition": ODETransition()}, "draws no noise, so the branches"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ValueDecoding(**options)
