"""One budget for all images: what is expected of it, that it is never exceeded, and that images stay what they are."""

import itertools
import math
from functools import cache

import pytest
import torch

from diamond_diffusers import NoiseEvolution, NoiseOptimization, RandomSearch, ZeroOrderSearch
from diamond_diffusers.alignment.budget import Budget
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.shared_rounds import SharedRounds

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import LINEAR, make_law
from ..products import one_of_each_kind
from .runs import DIMENSION, run

MIXTURE = make_mixture(3)
LEVELS = (math.inf, 0.0)
NUM_OWN = 2
"""Rounds of each image's own part."""


def shared(method, passes, num_images=2, budget=None, levels=LEVELS, seeds=None):
    """The rounds of each image, and the last progress, of a shared run."""
    law = make_law(MIXTURE, LINEAR, num_images=num_images)
    random = RandomSource([seeded(seed) for seed in seeds or range(num_images)], num_images)
    x = random.normal(method.num_particles, (DIMENSION,))
    rounds = SharedRounds(method.resolve(law.model), law, levels, budget or Budget())
    images = rounds.start(law, x, random)
    stages = list(rounds.iterate(law, images, passes))
    assert [progress.index for progress in stages] == list(range(len(stages)))
    assert stages[-1].num_stages == len(stages) and all(each.num_stages > len(stages) for each in stages[:-1])
    return images, stages[-1]


@pytest.fixture(scope="module")
def outcomes():
    """Passes by which rounds of two images would: everything that can happen in a shared budget of twice two rounds."""
    found = {}
    longest = 2 * NUM_OWN - 1
    for scripts in itertools.product(itertools.product((False, True), repeat=longest), repeat=2):
        search = RandomSearch(num_candidates=NUM_OWN, round_size=1)
        images, last = shared(search, lambda image, progress, scripts=scripts: scripts[image][progress.index])
        assert last.law.cost.network_evaluations == sum(image.num_rounds for image in images) <= 2 * NUM_OWN
        assert last.law.cost.reward_calls == sum(image.cost.reward_calls for image in images)
        found[scripts] = sum(image.has_passed for image in images)
    return found


def expected_passes(probabilities, num_rounds):
    """By recursion over the turns, where each round of image `i` passes with a probability of its own."""

    @cache
    def rest(left, waiting, later):
        if not left or not (waiting or later):
            return 0.0
        if not waiting:
            return rest(left, later, ())
        first, *others = waiting
        chance = probabilities[first]
        missed = rest(left - 1, tuple(others), (*later, first))
        return chance * (1 + rest(left - 1, tuple(others), later)) + (1 - chance) * missed

    return rest(num_rounds, tuple(range(len(probabilities))), ())


@pytest.mark.parametrize("probabilities", [(0.3, 0.3), (0.9, 0.2), (0.5, 0.05), (1.0, 0.4)])
def test_the_expected_number_of_passes_is_the_computed_one_and_beats_equal_parts(outcomes, probabilities):
    def chance_of(scripts):
        """Of each image's rounds by its own probability, whether they are taken or not."""
        return math.prod(
            chance if passes else 1 - chance
            for chance, script in zip(probabilities, scripts, strict=True)
            for passes in script
        )

    measured = sum(chance_of(scripts) * passes for scripts, passes in outcomes.items())
    computed = expected_passes(probabilities, 2 * NUM_OWN)
    equal_parts = sum(1 - (1 - chance) ** NUM_OWN for chance in probabilities)
    assert measured == pytest.approx(computed, abs=1e-12)
    assert measured > equal_parts + 0.02
    if len(set(probabilities)) == 1:
        # As many as there are successes among all rounds, and no more than images.
        rounds, chance = 2 * NUM_OWN, probabilities[0]
        binomial = [math.comb(rounds, n) * chance**n * (1 - chance) ** (rounds - n) for n in range(rounds + 1)]
        assert measured == pytest.approx(sum(min(n, 2) * p for n, p in enumerate(binomial)), abs=1e-12)


METHODS = {
    "random search": RandomSearch(num_candidates=4, round_size=2, num_particles=2),
    "zero-order search": ZeroOrderSearch(num_candidates=2, round_size=1),
    "noise optimization": NoiseOptimization(num_iterations=3),
    "noise evolution": NoiseEvolution(num_iterations=3),
}


@pytest.mark.parametrize("name", one_of_each_kind(METHODS, ["random search", "noise evolution"]))
def test_an_image_is_what_it_is_alone_after_as_many_rounds(name):
    """The first passes at once; the last takes what the first has left."""
    method = METHODS[name]
    images, last = shared(method, lambda image, progress: image == 0, num_images=3, levels=(math.inf, 1.0, 0.0))
    rounds = [image.num_rounds for image in images]
    assert rounds[0] == 1 and rounds[1] >= rounds[2] >= rounds[1] - 1 > 0
    result = last.result()
    for image, taken in enumerate(rounds):
        law, random = make_law(MIXTURE, LINEAR), RandomSource(seeded(image), 1)
        x = random.normal(method.num_particles, (DIMENSION,))
        stages = SharedRounds(method.resolve(law.model), make_law(MIXTURE, LINEAR, num_images=3), (math.inf, 1.0, 0.0))
        alone = itertools.islice(stages.whole.iterate(law, x, (math.inf, 1.0, 0.0), random), taken)
        expected = [progress.result() for progress in alone][-1]
        assert torch.equal(result.latents[image], expected.latents[0])
        assert torch.equal(result.rewards[image], expected.rewards[0])


def test_as_many_rounds_as_its_part_make_what_the_method_makes():
    search = RandomSearch(num_candidates=3, round_size=1)
    images, last = shared(search, lambda image, progress: False, num_images=2)
    assert [image.num_rounds for image in images] == [3, 3]
    expected = run(search, make_law(MIXTURE, LINEAR, num_images=2, particle_batch_size=1), LEVELS, seed=(0, 1))
    assert torch.equal(last.result().latents, expected.latents)


@pytest.mark.parametrize(
    ("budget", "levels", "rounds"),
    [
        (Budget(5), (math.inf, 0.0), [1, 7, 7]),
        # Of 24 evaluations and 9 scores, the scores are spent first.
        (Budget(8, 3), (math.inf, 1.0, 0.0), [1, 4, 4]),
        (Budget(5, 9), (math.inf, 1.0, 0.0), [1, 3, 3]),
    ],
)
def test_limits_of_all_images_are_those_of_one_times_their_number(budget, levels, rounds):
    search = RandomSearch(num_candidates=5, round_size=1)
    images, last = shared(search, lambda image, progress: image == 0, 3, budget, levels)
    assert [image.num_rounds for image in images] == rounds
    assert not list(budget.of_images(3).exceeded(last.law.cost))


def test_a_part_that_pays_for_no_round_is_refused():
    with pytest.raises(ValueError, match=r"one round of RandomSearch takes 4 of max_network_evaluations, of which an "):
        shared(RandomSearch(), lambda image, progress: False, budget=Budget(2))
    with pytest.raises(ValueError, match=r"has 3; that is what the method costs: give max_network_evaluations, or"):
        shared(RandomSearch(num_candidates=3, round_size=4), lambda image, progress: False, budget=Budget())


def test_images_that_share_a_generator_draw_differently():
    random = RandomSource(seeded(0), 3)
    first, second, third = (source.normal(1, (4,)) for source in random.of_each_image())
    assert not torch.equal(first, second) and not torch.equal(second, third)
    again = RandomSource(seeded(0), 3).of_each_image()
    assert torch.equal(again[1].normal(1, (4,)), second)
