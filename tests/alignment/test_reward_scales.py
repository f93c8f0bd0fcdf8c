"""Images of one run with rewards and scales of their own, and the scale that is found from plain samples."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from diamond_diffusers import (
    SMC,
    AncestralTransition,
    AutoRewardScale,
    BeamSearch,
    BestOfN,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoiseEvolution,
    NoiseOptimization,
    PathSearch,
    RandomSearch,
    WeightedPosterior,
    ZeroOrderSearch,
)
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.reward_of_each_image import RewardOfEachImage
from diamond_diffusers.core.pending import Pending
from diamond_diffusers.rewards import CallableReward, Reward

from ..core.mixture import make_mixture, seeded
from ..core.mixture_model import LINEAR, QUADRATIC, make_law, make_map_law
from .runs import run
from .test_batches import assert_same

MIXTURE = make_mixture(3)
SEEDS = [11, 12, 13]
REWARDS = [LINEAR, QUADRATIC, LINEAR]
SCALES = [0.5, 2.0, -3.0]
LOOK_AHEADS = GlassPosterior(2, 2)
FEW_LEVELS = (math.inf, 1.0, 0.0)

METHODS = {
    "best_of_n": BestOfN(num_particles=3),
    "smc": SMC(4, LOOK_AHEADS, GlassTransition(2), resampling_threshold=0.9),
    "guided smc": SMC(4, LOOK_AHEADS, GlassTransition(2), guide=Guide("pathwise")),
    "guidance": Guidance(LOOK_AHEADS, Guide("pathwise"), transition=GlassTransition(2), num_particles=2),
    "best seen": Guidance(LOOK_AHEADS, Guide("tilted_mean"), num_particles=2, keeps_best=True),
    "beam_search": BeamSearch(2, 3, LOOK_AHEADS, GlassTransition(2)),
    "path_search": PathSearch(2, 2, LOOK_AHEADS),
    "random_search": RandomSearch(AncestralTransition(), 2, num_candidates=5, round_size=2),
    "zero_order_search": ZeroOrderSearch(num_particles=2, num_candidates=5, round_size=2),
    "noise_optimization": NoiseOptimization(num_iterations=3, num_particles=2),
    "noise_evolution": NoiseEvolution(num_iterations=2, num_particles=2, num_perturbations=2),
}


def run_images(method, images, **options):
    """The images of these indices, each with its own reward, scale and generator, of at most three rows a call."""
    rewards = RewardOfEachImage([REWARDS[image] for image in images])
    scales = torch.tensor([SCALES[image] for image in images])
    options = {"num_images": len(images), "reward_scale": scales, "particle_batch_size": 3, **options}
    return run(method, make_law(MIXTURE, rewards, **options), seed=[SEEDS[image] for image in images])


def best(result):
    """The reward of the best particle of each image."""
    return result.rewards.gather(1, result.select("best", RandomSource(None, len(result.rewards))))


QUICK = ("best_of_n", "smc", "random_search", "noise_optimization", "noise_evolution")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in METHODS])
def test_an_image_is_what_it_would_be_alone_with_its_own_reward_and_scale(name):
    together = run_images(METHODS[name], [0, 1, 2])
    for image in range(3):
        law = make_law(MIXTURE, REWARDS[image], reward_scale=SCALES[image], particle_batch_size=3)
        alone = run(METHODS[name], law, seed=[SEEDS[image]])
        assert_same(together, alone, slice(image, image + 1), atol=0, rtol=0)
        assert torch.equal(best(together)[image], best(alone)[0])
    # Each of them counts: with the scale of another image this one is another.
    others = run_images(METHODS[name], [0, 1, 2], reward_scale=-torch.tensor(SCALES))
    assert not any(torch.equal(one, other) for one, other in zip(best(together), best(others), strict=True))


@pytest.mark.parametrize("weights", [pytest.param("equal", marks=pytest.mark.slow), "reward_softmax"])
def test_look_aheads_are_averaged_by_the_scale_of_their_own_image(weights):
    method = Guidance(WeightedPosterior(num_samples=3, weights=weights), Guide("pathwise", scaling="norm"))
    together = run(
        method,
        make_map_law(MIXTURE, LINEAR, 2, reward_scale=torch.tensor([0.5, 4.0]), particle_batch_size=3),
        FEW_LEVELS,
        seed=[1, 2],
    )
    for image, scale in enumerate((0.5, 4.0)):
        law = make_map_law(MIXTURE, LINEAR, reward_scale=scale, particle_batch_size=3)
        alone = run(method, law, FEW_LEVELS, seed=[image + 1])
        assert torch.equal(together.latents[image], alone.latents[0])


def test_terms_are_nan_where_an_image_s_own_reward_has_none():
    rows = [CallableReward(lambda images, prompts: images.mean((1, 2, 3)), name) for name in ("red", "blue")]
    reward = RewardOfEachImage([rows[0], 2 * rows[0] + rows[1], rows[0]])
    output = reward.evaluate(torch.rand(3, 3, 4, 4), [""] * 3)
    assert list(output.terms) == reward.term_names == ["red", "blue"]
    assert output.terms["red"].isfinite().all() and output.terms["blue"].isnan().tolist() == [True, False, True]
    torch.testing.assert_close(output.total[1], 2 * output.terms["red"][1] + output.terms["blue"][1])
    # The images of one reward are scored in one call, by it alone, and a part of the rows has the same terms.
    assert reward.rows(torch.tensor([2])).evaluate(torch.rand(1, 3, 4, 4), [""]).terms["blue"].isnan().all()


def test_rewards_that_are_awaited_are_begun_before_the_others_are_computed():
    events = []

    class Service(Channel):
        is_concurrent = True

        def begin(self, images, prompts, **context):
            events.append(f"{self.name} begins")
            return Pending(partial(self.evaluate, images, prompts))

    images, order = torch.rand(5, 3, 2, 2), [0, 2, 1, 0, 1]
    rewards = [Channel("here", 0, events), Service("there", 1, events), Service("elsewhere", 2, events)]
    reward = RewardOfEachImage([rewards[index] for index in order])
    assert reward.is_concurrent and not reward.rows(torch.tensor([0, 3])).is_concurrent
    scores = images.mean((2, 3))[torch.arange(5), order]
    for ask in (reward.evaluate, lambda *given: reward.begin(*given).result()):
        output = ask(images, [""] * 5)
        torch.testing.assert_close(output.total, scores)
        assert events == ["elsewhere begins", "there begins", "here", "elsewhere", "there"]
        events.clear()


class Channel(Reward):
    """The mean of a channel, which notes that it was asked."""

    differentiable = False

    def __init__(self, name, channel, events):
        self.name, self.channel, self.events = name, channel, events

    def score(self, images, prompts):
        self.events.append(self.name)
        return images[:, self.channel].mean((1, 2))


def test_a_scale_that_not_each_image_has_is_refused():
    for scales, problem in (
        ([1.0, 2.0], r"shape \[2\], but there are 3 images"),
        ([1.0, 0.0, 2.0], r"reward_scale\[1\] is 0 and others are not"),
        ([1.0, 2.0, math.nan], r"reward_scale\[2\] is nan"),
    ):
        with pytest.raises(ValueError, match=problem):
            make_law(MIXTURE, LINEAR, num_images=3, reward_scale=torch.tensor(scales))
    law = make_law(MIXTURE, LINEAR, num_images=3, reward_scale=torch.zeros(3))
    assert not law.is_tilted and replace(law, reward_scale=2.0).is_tilted


@pytest.mark.parametrize(("deviation", "share"), [(0.03, 0.25), (7.0, 0.25), (1.0, 0.05)])
def test_the_scale_of_normal_rewards_is_that_of_the_closed_form(deviation, share):
    """`ESS / N` of many samples is `exp(-(scale * deviation)^2)`."""
    count = 200_000
    rewards = 20 + deviation * torch.randn(count, generator=seeded(0), dtype=torch.float64)
    found = AutoRewardScale(count, share).of_rewards(rewards)
    expected = math.sqrt(-math.log(share)) / deviation
    # With a = scale * deviation the share has a relative variance below e^(4 a^2) / N (delta method, whose largest term
    # is that of the squared weights). Its logarithm is -a^2, so that a relative error of a moves it by 2 a^2 as much.
    error = share**-2 / math.sqrt(count) / (2 * -math.log(share))
    assert abs(found / expected - 1) < 4 * error


def test_the_scale_follows_the_units_of_the_reward():
    scale, rewards = AutoRewardScale(), torch.randn(32, generator=seeded(1), dtype=torch.float64)
    found = scale.of_rewards(rewards)
    log_weights = found * rewards
    share = log_weights.logsumexp(0).mul(2).sub((2 * log_weights).logsumexp(0)).exp() / 32
    assert share.item() == pytest.approx(0.25, rel=1e-9)
    for factor, shift in ((1e-3, 0.0), (250.0, -1e3), (1.0, 42.0)):
        assert factor * scale.of_rewards(factor * rewards + shift) == pytest.approx(found, rel=1e-9)
    # A smaller share is a stronger tilt, and those without a reward do not count.
    assert AutoRewardScale(effective_share=0.1).of_rewards(rewards) > found
    assert scale.of_rewards(torch.cat([rewards, torch.full((8,), math.nan)])) == pytest.approx(found, rel=1e-12)


@pytest.mark.parametrize(
    ("rewards", "problem"),
    [
        (torch.ones(8), "8 of the rewards of 8 plain samples are numbers, and 8 of them the highest"),
        (torch.tensor([0.0] * 6 + [1.0] * 2), "8 of the rewards of 8 plain samples are numbers, and 2 of them"),
        (torch.tensor([math.nan] * 7 + [1.0]), "1 of the rewards of 8 plain samples are numbers, and 1 of them"),
        (torch.full((8,), math.nan), "0 of the rewards of 8 plain samples are numbers, and 0 of them"),
    ],
)
def test_rewards_that_tell_no_scale_are_refused_in_one_sentence(rewards, problem):
    with pytest.raises(ValueError, match=problem):
        AutoRewardScale(8).of_rewards(rewards)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_samples": 1}, "num_samples is 1; give at least 2"),
        ({"effective_share": 1.0}, "effective_share is 1.0; give a number between"),
        ({"num_samples": 8, "effective_share": 0.125}, "effective_share is 0.125; .* here 0.125"),
    ],
)
def test_options_out_of_range_are_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        AutoRewardScale(**options)
