"""A reward and a scale for each prompt, the scales of named rewards, and the scale that plain samples tell."""

import logging
import math
from collections.abc import Sequence

import pytest
import torch

from benchmarks.zoo.sana import build_tiny_sana_sprint
from diamond_diffusers import SMC, AutoRewardScale, BestOfN, DiamondMapPipeline, Method
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.pipelines.auto_scale import random_of_prompts
from diamond_diffusers.pipelines.resolution import own_reward_scale
from diamond_diffusers.rewards import (
    REWARDS,
    CallableReward,
    ClippedReward,
    PlacedReward,
    Reward,
    StandardisedReward,
    as_reward,
)

FEW_STEP_CALL = {"height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 8}
PROMPTS = ["a red star", "two blue rings"]
CALL = {"num_inference_steps": 2, "output_type": "pt", "particle_batch_size": 2}


@pytest.fixture
def pipe(shared_pipe: DiamondMapPipeline) -> DiamondMapPipeline:
    return shared_pipe


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_each_prompt_s_images_have_its_reward_and_scale(pipe: DiamondMapPipeline) -> None:
    rewards, scales = ["brightness + 2*colour", redness], [30.0, -5.0]
    options = {**CALL, "alignment": SMC(num_particles=3), "num_images_per_prompt": 2}
    out = pipe(PROMPTS, reward=rewards, reward_scale=scales, generator=seeded(1, 2, 3, 4), **options)
    assert out.reward_scale.tolist() == [30.0, 30.0, -5.0, -5.0]
    assert list(out.reward_terms) == ["brightness", "colour", "redness"]
    assert out.reward_terms["redness"].isnan().tolist() == [True, True, False, False]
    assert out.reward_terms["colour"].isnan().tolist() == [False, False, True, True]
    for prompt, reward, scale, rows in zip(PROMPTS, rewards, scales, (slice(0, 2), slice(2, 4)), strict=True):
        seeds = seeded(*range(1, 5)[rows])
        alone = pipe([prompt], reward=reward, reward_scale=scale, generator=seeds, **options)
        for name in ("images", "rewards", "log_weights", "log_evidence"):
            assert torch.equal(getattr(out, name)[rows], getattr(alone, name))


def test_one_reward_for_all_prompts_is_that_reward(pipe: DiamondMapPipeline) -> None:
    options = {**CALL, "alignment": BestOfN(num_particles=2)}
    one = pipe(PROMPTS, reward="colour", generator=seeded(1, 2), **options)
    several = pipe(PROMPTS, reward=["colour", "colour"], generator=seeded(1, 2), **options)
    assert torch.equal(one.images, several.images) and one.cost.reward_calls == several.cost.reward_calls


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"reward": ["colour"] * 3}, "reward holds 3 values for 2 prompts; give one for each prompt"),
        ({"reward_scale": [1.0]}, "reward_scale holds 1 values for 2 prompts"),
        ({"reward_scale": [1.0, 0.0]}, r"reward_scale\[1\] is 0 and others are not"),
        ({"reward_scale": [1.0, math.inf]}, r"reward_scale\[1\] is inf"),
        ({"reward": ["colour", "colours"]}, "colours"),
        ({"reward": ["colour", "jpeg_size"], "alignment": "guidance"}, "'jpeg_size' has no gradient"),
        (
            {"reward_scale": {"name": 1}},
            "reward_scale takes AutoRewardScale, which has no option 'name'; choose one of",
        ),
        ({"reward_scale": "automatic"}, "reward_scale is 'automatic'; give a number"),
    ],
)
def test_wrong_rewards_and_scales_are_refused(pipe: DiamondMapPipeline, options: dict, problem: str) -> None:
    with pytest.raises((TypeError, ValueError), match=problem):
        pipe(PROMPTS, **{"reward": "colour", **CALL, **options})


def test_a_reward_of_one_s_own_scale_is_taken_where_none_is_given(pipe: DiamondMapPipeline) -> None:
    # The embedded model's own reward is a log-likelihood.
    assert own_reward_scale(as_reward("miniature"), pipe.defaults) == 1.0
    assert own_reward_scale(as_reward("colour"), pipe.defaults) == 50.0
    assert own_reward_scale(as_reward(redness), pipe.defaults) == own_reward_scale(None, {}) == 1.0
    assert own_reward_scale(as_reward("colour"), {"reward": "colour", "reward_scale": 3.0}) == 3.0
    options = {**CALL, "num_inference_steps": 1, "alignment": BestOfN(num_particles=1), "generator": torch.Generator()}
    assert pipe(PROMPTS, reward=["brightness", redness], **options).reward_scale.tolist() == [50.0, 1.0]
    assert pipe("a star", reward="colour", **options).reward_scale.tolist() == [50.0]


def test_the_own_scale_of_what_is_made_of_rewards() -> None:
    colour, brightness = as_reward("colour"), as_reward("brightness")
    assert colour.default_reward_scale == 50.0
    # A factor changes the unit of a reward, and its scale with it: the law is the same.
    assert (-2 * colour).default_reward_scale == pytest.approx(25.0)
    both = (colour + 2 * brightness).default_reward_scale
    assert both == pytest.approx(1 / math.sqrt((1 / 50) ** 2 + (2 / 50) ** 2))
    assert (colour + CallableReward(redness)).default_reward_scale is None
    assert (0 * colour).default_reward_scale is None
    assert StandardisedReward(colour, 0.2, 0.05).default_reward_scale == pytest.approx(2.5)
    assert ClippedReward(colour, 0.1).default_reward_scale == PlacedReward(colour, "cpu").default_reward_scale == 50.0


@pytest.mark.parametrize(
    "alignment", [SMC(num_particles=2), pytest.param(BestOfN(), marks=pytest.mark.slow)], ids=["smc", "best of n"]
)
def test_a_scale_that_is_found_is_that_of_the_prompt(
    pipe: DiamondMapPipeline, alignment: Method, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**CALL, "alignment": alignment, "reward": "colour"}
    scale = AutoRewardScale(num_samples=6, effective_share=0.4)
    with caplog.at_level(logging.INFO, "diamond_diffusers.pipelines.auto_scale"):
        found = pipe(PROMPTS, reward_scale=scale, generator=seeded(1, 2), **options)
    shown = ", ".join(f"{each:.4g}" for each in found.reward_scale.tolist())
    assert caplog.messages == [f"reward_scale: {shown}, from 6 plain samples of each prompt."]
    # A run with that number is the same, at the cost of the run alone.
    given = pipe(PROMPTS, reward_scale=found.reward_scale.tolist(), generator=seeded(1, 2), **options)
    assert torch.equal(found.images, given.images) and torch.equal(found.rewards, given.rewards)
    costs = [getattr(found.cost, name) - getattr(given.cost, name) for name in ("network_evaluations", "reward_calls")]
    assert costs == [2 * 6 * 2 * 2, 2 * 6]
    # So is one prompt alone.
    alone = pipe(PROMPTS[1:], reward_scale=scale, generator=seeded(2), **options)
    assert torch.equal(alone.images[0], found.images[1]) and alone.reward_scale[0] == found.reward_scale[1]


def test_the_scale_is_that_of_plain_samples(pipe: DiamondMapPipeline) -> None:
    """The same samples, drawn by calls without alignment, tell the same scale."""
    seen: list[torch.Tensor] = []

    def watched(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append(images[:, 0].mean((1, 2)))
        return seen[-1]

    reward = CallableReward(watched, differentiable=False)
    options = {**CALL, "alignment": BestOfN(num_particles=3), "reward": reward, "particle_batch_size": 1}
    found = pipe("a red star", reward_scale=AutoRewardScale(5), generator=torch.Generator().manual_seed(3), **options)
    of_samples = torch.cat(seen)[1:6]
    # Apart from each other and from the run's own particles.
    assert len(seen) == 1 + 5 + 3 and len(torch.cat(seen).unique()) == 9
    assert found.reward_scale[0] == AutoRewardScale(5).of_rewards(of_samples)
    seeds, plain = {"generator": torch.Generator().manual_seed(4)}, {**CALL, "alignment": "none", "reward": redness}
    drawn = pipe(["a red star"] * 16, **seeds, **plain).rewards
    assert 0.2 * drawn.std() < of_samples.std() < 4 * drawn.std()
    assert abs(of_samples.mean() - drawn.mean()) < 4 * drawn.std() / math.sqrt(5)


@pytest.mark.parametrize("given", [None, "one", "each"])
def test_plain_samples_are_drawn_apart_from_everything_that_the_run_draws(
    pipe: DiamondMapPipeline, given: str | None
) -> None:
    torch.manual_seed(7)
    generator = {None: None, "one": seeded(7)[0], "each": seeded(7, 8, 9, 10)}[given]
    call = pipe.prepare(PROMPTS, num_images_per_prompt=2, generator=generator)
    run = RandomSource(generator, 4)
    before = run.states()
    drawn = random_of_prompts(call).normal(1, (3,))
    assert drawn.shape == (2, 3) and all(map(torch.equal, before, run.states()))
    others = torch.cat([run.aside.normal(2, (3,)), run.normal(2, (3,))])
    assert not torch.isin(drawn, others).any()
    if given == "each":
        # A prompt alone draws the same.
        alone = pipe.prepare(PROMPTS[1:], num_images_per_prompt=2, generator=seeded(9, 10))
        assert torch.equal(random_of_prompts(alone).normal(1, (3,)), drawn[1:])


def test_rewards_that_tell_no_scale_are_refused_by_name_of_the_prompt(pipe: DiamondMapPipeline) -> None:
    constant = CallableReward(lambda images, prompts: 0 * images[:, 0, 0, 0], "constant", differentiable=False)
    options = {**CALL, "num_inference_steps": 1, "reward": constant, "alignment": "smc"}
    with pytest.raises(ValueError, match=r"^reward_scale is 'auto', but for the prompt 'a red star' 5 of .* a number$"):
        pipe("a red star", reward_scale=AutoRewardScale(5), **options)


def test_plain_samples_need_no_scale(pipe: DiamondMapPipeline) -> None:
    out = pipe("a red star", reward="colour", reward_scale="auto", alignment="none", **CALL)
    assert out.reward_scale is None and out.cost.network_evaluations == 4


def test_plain_samples_whose_reward_fails_do_not_count(pipe: DiamondMapPipeline) -> None:
    scored: list[float] = []

    def failing(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scored.extend(redness(images, prompts).tolist())
        # The first is the random image on which rewards are tried.
        if len(scored) == 3:
            raise OSError("no answer")
        return redness(images, prompts)

    reward = CallableReward(failing, differentiable=False)
    options = {**CALL, "num_inference_steps": 1, "alignment": BestOfN(num_particles=1), "particle_batch_size": 1}
    out = pipe("a red star", reward=reward, reward_scale=AutoRewardScale(5, 0.5), on_reward_error="skip", **options)
    of_samples = torch.tensor(scored[1:6])
    of_samples[1] = math.nan
    assert out.reward_scale[0] == AutoRewardScale(5, 0.5).of_rewards(of_samples)
    assert out.rewards.isfinite().all()


def test_a_call_that_is_interrupted_before_its_scale_is_found_returns_images(pipe: DiamondMapPipeline) -> None:
    calls: list[int] = []

    def interrupting(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            pipe.interrupt()
        return redness(images, prompts)

    reward = CallableReward(interrupting, differentiable=False)
    out = pipe("a red star", reward=reward, reward_scale=AutoRewardScale(16), alignment="smc", **CALL)
    assert out.interrupted and out.reward_scale is None and out.images.isfinite().all()
    assert sum(calls) < 16


@pytest.mark.slow
def test_a_few_step_model_is_sampled_as_it_samples_whatever_start_is_given() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sana_sprint())
    pipe.set_progress_bar_config(disable=True)
    options = {**FEW_STEP_CALL, "alignment": BestOfN(num_particles=2), "reward": redness, "output_type": "pt"}
    call = pipe.prepare("a star", **FEW_STEP_CALL)
    latents = pipe.family.prepare_latents(call.arguments, call.conditions, 2, seeded(6)[0])
    scales = []
    for given in ({}, {"latents": latents}):
        found = pipe("a star", reward_scale=AutoRewardScale(4, 0.5), generator=seeded(5), **given, **options)
        again = pipe("a star", reward_scale=found.reward_scale.item(), generator=seeded(5), **given, **options)
        assert torch.equal(found.images, again.images)
        scales.append(found.reward_scale.item())
    # The start that is given is the run's own, and no plain sample's.
    assert scales[0] == scales[1] > 0


def test_one_prompt_alone_may_be_constrained(pipe: DiamondMapPipeline) -> None:
    rewards, options = ["colour", "brightness < 0.8"], {**CALL, "alignment": SMC(num_particles=2)}
    out = pipe(PROMPTS, reward=rewards, generator=seeded(1, 2), **options)
    for image, reward in enumerate(rewards):
        alone = pipe(PROMPTS[image], reward=reward, generator=seeded(image + 1), **options)
        assert torch.equal(out.images[image], alone.images[0]) and out.rewards[image] == alone.rewards[0]


def test_expressions_of_several_prompts_share_their_models(
    pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Reward] = []

    class Judge(Reward):
        def __init__(self) -> None:
            made.append(self)

        def score(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
            return images.mean((1, 2, 3))

    monkeypatch.setitem(REWARDS._entries, "judge_of_several", Judge)
    rewards = ["colour + judge_of_several", "colour, judge_of_several > 0"]
    pipe(PROMPTS, reward=rewards, alignment="best_of_n", **CALL)
    pipe(PROMPTS, reward="2*judge_of_several", alignment="best_of_n", **CALL)
    assert len(made) == 1


def test_constraints_alone_have_no_scale_to_be_found(pipe: DiamondMapPipeline) -> None:
    bound = as_reward("brightness > 0")
    with pytest.raises(
        ValueError, match="reward_scale is 'auto', but the reward 'brightness > 0' has constraints alone"
    ):
        pipe(PROMPTS, reward=bound, reward_scale="auto", alignment="best_of_n", **CALL)
    auto = AutoRewardScale(4, 0.5)
    out = pipe(PROMPTS, reward=["colour", bound], reward_scale=auto, alignment="best_of_n", **CALL)
    assert out.reward_scale[1] == 1 and out.reward_scale[0] > 1


def test_a_scale_of_0_does_not_make_some_images_plain_samples(pipe: DiamondMapPipeline) -> None:
    # One of them would be drawn with look-aheads, which it is not alone.
    with pytest.raises(
        ValueError, match="reward_scale is 0, so that images of the reward 'brightness' are plain samples"
    ):
        pipe(PROMPTS, reward=["brightness", "colour, brightness > 0"], reward_scale=0.0, alignment="smc", **CALL)
