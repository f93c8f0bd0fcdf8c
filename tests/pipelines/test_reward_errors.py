"""Rewards that fail, and numbers that are none: what a run raises, keeps, skips and counts."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.zoo.stable_diffusion import add_safety_checker, build_tiny_stable_diffusion
from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment import reward_errors
from diamond_diffusers.rewards import CallableReward, Reward, as_reward
from diamond_diffusers.rewards.transformed import TransformedReward

from ..products import one_of_each_kind
from .test_iterate import NAMES, PROMPTS, REWARDED, build_pipe, call

CASES = one_of_each_kind([name for name in NAMES if name != "none"], REWARDED)


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("alignment.reward_errors", "pipelines.resolution"):
        monkeypatch.setattr(f"diamond_diffusers.{module}.RETRY_DELAYS", (0.0, 0.0, 0.0))


class OutOfReach(Exception):
    """What a remote reward may raise."""


class Judge:
    """A reward that counts what it scores, and fails where it is told to.

    Args:
        fails: whether a call fails, of its number (the one that tries the reward is 0) and its images.
    """

    def __init__(self, fails: Callable[[int, Tensor], bool] = lambda number, images: False) -> None:
        self.fails = fails
        self.sizes: list[int] = []

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.sizes.append(len(images))
        if self.fails(len(self.sizes) - 1, images.detach()):
            raise OutOfReach("no answer")
        return images.mean((1, 2, 3))

    def reward(self) -> Reward:
        return CallableReward(self, "judge", differentiable=True)


def run(pipe: DiamondMapPipeline, name: str, judge: Judge, **options: Any) -> Any:
    return pipe(**call(name), reward=judge.reward(), reward_scale=20.0, **options)


@pytest.mark.parametrize("name", CASES)
def test_every_image_that_the_reward_sees_is_counted(pipe: DiamondMapPipeline, name: str) -> None:
    judge = Judge()
    out = run(pipe, name, judge)
    assert out.cost.reward_calls == sum(judge.sizes)


def test_the_trial_that_finds_out_about_gradients_is_counted(pipe: DiamondMapPipeline) -> None:
    judge = Judge()
    out = pipe(**{**call("guidance"), "alignment": None}, reward=CallableReward(judge))
    assert out.cost.reward_calls == sum(judge.sizes)
    assert judge.sizes[:3] == [1, 1, 1]


@pytest.mark.parametrize("name", CASES)
def test_the_exception_is_the_reward_s_own_with_the_best_images(pipe: DiamondMapPipeline, name: str) -> None:
    whole = Judge()
    run(pipe, name, whole)
    last = len(whole.sizes) - 1
    judge = Judge(lambda number, images: number == last)
    with pytest.raises(OutOfReach, match="no answer") as caught:
        run(pipe, name, judge)
    # Nobody asked it again.
    assert len(judge.sizes) == last + 1
    images = caught.value.best_images  # type: ignore[attr-defined]
    # Some methods score the end alone, others draw all in one step.
    assert images is None or [type(image) for image in images] == [Image] * len(PROMPTS)
    (note,) = caught.value.__notes__
    assert note.startswith("best_images of this exception" + (" is None" if images is None else ": it holds"))
    # The pipeline is as good as before.
    assert run(pipe, name, Judge()).images.isfinite().all()


def test_best_images_are_those_of_the_last_step(pipe: DiamondMapPipeline) -> None:
    """They are chosen by the values known then."""
    judge, alignment = Judge(), {"alignment": SMC(num_particles=4, num_valuations=None)}
    with pipe.iterate(**{**call("smc"), **alignment}, reward=judge.reward(), reward_scale=20.0) as stepped:
        progress = next(stepped)
        rows = progress.values.argmax(1) + 4 * torch.arange(2)
        expected = progress.law.rows(progress.clean[rows]).decode(progress.clean[rows])
    failing = Judge(lambda number, images: number == len(judge.sizes))
    with pytest.raises(OutOfReach) as caught:
        pipe(**{**call("smc"), **alignment}, reward=failing.reward(), reward_scale=20.0)
    for image, pixels in zip(caught.value.best_images, expected, strict=True):  # type: ignore[attr-defined]
        found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(16, 16, 3)
        torch.testing.assert_close(found.permute(2, 0, 1).float() / 255, pixels, atol=1.01 / 255, rtol=0)
    assert "after step 1 of 3, look-aheads from the noise-to-signal ratio" in caught.value.__notes__[0]


def test_where_no_step_was_finished_there_are_none(pipe: DiamondMapPipeline) -> None:
    judge = Judge(lambda number, images: number == 1)
    with pytest.raises(OutOfReach) as caught:
        run(pipe, "guidance", judge)
    assert caught.value.best_images is None  # type: ignore[attr-defined]
    assert "None: no step was finished" in caught.value.__notes__[0]


def test_the_output_of_a_run_that_was_left_has_them_too(pipe: DiamondMapPipeline) -> None:
    judge = Judge(lambda number, images: number == 1)
    options = {**call("smc"), "alignment": BestOfN(num_particles=2)}
    stepped = pipe.iterate(**options, reward=judge.reward())
    next(stepped)
    with pytest.raises(OutOfReach) as caught:
        stepped.output()
    assert len(caught.value.best_images) == 2  # type: ignore[attr-defined]


def test_other_exceptions_carry_nothing(pipe: DiamondMapPipeline) -> None:
    def broken(*arguments: object) -> dict:
        raise OutOfReach("a callback's")

    with pytest.raises(OutOfReach) as caught:
        run(pipe, "smc", Judge(), callback_on_step_end=broken)
    assert not hasattr(caught.value, "best_images")


@pytest.mark.parametrize("name", ["smc", "guidance", "noise_optimization", "best_of_n"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_reward_that_answers_again_changes_nothing(
    pipe: DiamondMapPipeline, name: str, checkpointing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(pipe, name, Judge(), gradient_checkpointing=checkpointing)
    judge = Judge(lambda number, images: number in (0, 1, 3, 4, 5))
    out = run(pipe, name, judge, on_reward_error="retry", gradient_checkpointing=checkpointing)
    assert torch.equal(out.images, expected.images) and torch.equal(out.rewards, expected.rewards)
    if not checkpointing:
        # What is evaluated again on the backward pass is not counted.
        assert out.cost.reward_calls == sum(judge.sizes) > expected.cost.reward_calls
    assert sum("The reward failed (no answer)" in message for message in caplog.messages) == 5


def test_a_reward_that_never_answers_is_given_up(pipe: DiamondMapPipeline) -> None:
    judge = Judge(lambda number, images: number > 2)
    with pytest.raises(OutOfReach) as caught:
        run(pipe, "smc", judge, on_reward_error="retry")
    assert len(judge.sizes) == 3 + 4
    assert hasattr(caught.value, "best_images")


@pytest.mark.parametrize("action", ["retry", "skip"])
def test_a_want_of_memory_is_no_failure_of_the_reward(
    pipe: DiamondMapPipeline, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Large(Judge):
        def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
            scores = super().__call__(images, prompts)
            if len(self.sizes) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return scores

    with pytest.raises(torch.OutOfMemoryError) as caught:
        run(pipe, "best_of_n", Large(), on_reward_error=action)
    assert not hasattr(caught.value, "best_images")
    assert not any("failed" in message for message in caplog.messages)


def test_the_wait_is_ended_by_an_interruption(pipe: DiamondMapPipeline) -> None:
    def fails(number: int, images: Tensor) -> bool:
        if number == 3:
            pipe.interrupt()
        return number == 3

    judge = Judge(fails)
    out = run(pipe, "smc", judge, on_reward_error="retry")
    assert out.interrupted and out.images.isfinite().all()


def lit(images: Tensor) -> Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.parametrize(("name", "batch_size"), [*((name, None) for name in REWARDED), ("smc", 2), ("fmrg", 1)])
def test_images_that_fail_are_left_out(
    pipe: DiamondMapPipeline, name: str, batch_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The brighter half of the images fails, and would be the best."""
    seen: list[Tensor] = []
    run(pipe, name, Judge(lambda number, images: bool(seen.append(lit(images)))))
    limit = torch.cat(seen[-2:]).median().item()
    judge = Judge(lambda number, images: number > 0 and bool((lit(images) > limit).any()))
    options = {"on_reward_error": "skip", "particle_batch_size": batch_size, "final_selection": "all"}
    out = run(pipe, name, judge, **options)
    assert out.images.isfinite().all()
    failed = lit(out.images) > limit
    assert torch.equal(out.rewards.isnan(), failed)
    assert torch.equal(out.reward_terms["judge"].isnan(), failed)
    # No weight where others have some.
    weights = out.log_weights.exp().reshape(len(PROMPTS), -1)
    is_apart = failed.reshape(weights.shape) & ~failed.reshape(weights.shape).all(1, keepdim=True)
    if name in ("smc", "das", "posterior_smc"):
        assert (weights[is_apart] == 0).all()
    assert sum("failed on" in message for message in caplog.messages) == 1
    judge.sizes.clear()
    best = run(pipe, name, judge, **{**options, "final_selection": "best"})
    expected = out.rewards.reshape(weights.shape).nan_to_num(nan=-math.inf).amax(1)
    assert torch.equal(best.rewards.nan_to_num(nan=-math.inf), expected)


@pytest.mark.parametrize("name", REWARDED)
def test_where_all_images_fail_they_count_as_equal(
    pipe: DiamondMapPipeline, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    judge = Judge(lambda number, images: number > 0)
    out = run(pipe, name, judge, on_reward_error="skip")
    assert out.rewards.isnan().all() and out.images.isfinite().all()
    assert out.cost.reward_calls == sum(judge.sizes)
    assert out.log_weights.isfinite().all()
    assert [record.levelno for record in caplog.records if "failed on" in record.message] == [logging.WARNING]


def test_a_step_without_rewards_is_a_plain_one(pipe: DiamondMapPipeline) -> None:
    """Guidance gets no gradient from what fails."""
    alignment = {"alignment": Guidance(guide=Guide("pathwise"))}
    judge = Judge(lambda number, images: number > 0)
    options = {**call("guidance"), **alignment, "on_reward_error": "skip"}
    out = pipe(**options, reward=judge.reward(), reward_scale=20.0)
    plain = pipe(**{**call("guidance"), **alignment}, reward=Judge().reward(), reward_scale=0.0)
    torch.testing.assert_close(out.images, plain.images, atol=1e-4, rtol=0)


def test_a_negative_scale_prefers_no_image_that_fails(pipe: DiamondMapPipeline) -> None:
    options = {"alignment": BestOfN(num_particles=8), "reward_scale": -1.0, "on_reward_error": "skip"}
    every = pipe(**{**call("best_of_n"), **options}, reward=Judge().reward(), final_selection="all")
    limit = every.rewards.median().item()
    judge = Judge(lambda number, images: number > 0 and bool((lit(images) < limit).any()))
    out = pipe(**{**call("best_of_n"), **options}, reward=judge.reward(), final_selection="all")
    judge.sizes.clear()
    best = pipe(**{**call("best_of_n"), **options}, reward=judge.reward())
    rewards = out.rewards.reshape(2, 8)
    assert 0 < rewards.isnan().sum() < 16
    assert torch.equal(best.rewards, rewards.nan_to_num(nan=math.inf).amin(1))


def test_the_one_who_fails_the_trial_is_not_skipped(pipe: DiamondMapPipeline) -> None:
    judge = Judge(lambda number, images: True)
    with pytest.raises(OutOfReach):
        run(pipe, "smc", judge, on_reward_error="skip")
    assert judge.sizes == [1] * 4


def test_the_option_is_checked(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(ValueError, match="on_reward_error is 'ignore'; choose one of raise, retry, skip"):
        pipe("a star", on_reward_error="ignore")


def test_nan_of_a_transform_is_an_error_of_the_reward(pipe: DiamondMapPipeline) -> None:
    class Root(TransformedReward):
        def transform(self, scores: Tensor) -> Tensor:
            return (scores - 10).sqrt()

    with pytest.raises(ValueError, match="Reward 'root' makes NaN of the scores of its terms"):
        pipe("a star", reward=Root(as_reward("brightness"), "root"), alignment="best_of_n", num_inference_steps=1)


@pytest.fixture(scope="module")
def checked() -> DiamondMapPipeline:
    """Stable Diffusion with a checker that flags some of the particles of `draw`."""
    pipe = DiamondMapPipeline.from_pipe(add_safety_checker(build_tiny_stable_diffusion(), threshold=0.0))
    pipe.set_progress_bar_config(disable=True)
    checker, embeds = pipe.safety_checker, []
    handle = checker.visual_projection.register_forward_hook(lambda module, arguments, output: embeds.append(output))
    draw(pipe, final_selection="all")
    handle.remove()
    similarities = torch.nn.functional.cosine_similarity(torch.cat(embeds)[:, None], checker.concept_embeds, dim=-1)
    checker.concept_embeds_weights.fill_(similarities.amax(1).median().item())
    return pipe


def draw(pipe: DiamondMapPipeline, **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    standard = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": 32, "width": 32, "output_type": "pt"}
    reward = CallableReward(lambda images, prompts: lit(images), "lit")
    options = {**standard, "alignment": BestOfN(num_particles=4), "reward": reward, **options}
    return pipe(PROMPTS, generator=generators, **options)


@pytest.mark.parametrize("reward_scale", [1.0, -1.0])
def test_what_the_checker_blacks_out_has_no_reward_and_is_never_the_best(
    checked: DiamondMapPipeline, reward_scale: float
) -> None:
    every = draw(checked, final_selection="all", reward_scale=reward_scale)
    flagged = torch.tensor(every.nsfw_content_detected)
    assert 0 < flagged.sum() < len(flagged)
    assert torch.equal(every.rewards.isnan(), flagged)
    assert torch.equal(every.reward_terms["lit"].isnan(), flagged)
    assert (every.images[flagged] == 0).all()
    best = draw(checked, reward_scale=reward_scale)
    values = (reward_scale * every.rewards).nan_to_num(nan=-math.inf).reshape(2, 4)
    assert torch.equal((reward_scale * best.rewards).nan_to_num(nan=-math.inf), values.amax(1))
    assert best.nsfw_content_detected == flagged.reshape(2, 4).all(1).tolist()
    assert torch.equal(best.images, every.images.unflatten(0, (2, 4))[torch.arange(2), values.argmax(1)])


def test_latents_are_not_checked(checked: DiamondMapPipeline) -> None:
    out = draw(checked, output_type="latent")
    assert out.nsfw_content_detected is None and out.rewards.isfinite().all()


def test_the_delays_are_short() -> None:
    assert sum(reward_errors.RETRY_DELAYS) <= 4


def test_a_run_that_is_interrupted_too_keeps_its_best_images(pipe: DiamondMapPipeline) -> None:
    """The look-aheads are made where the interruption has nothing left to end."""

    def fails(number: int, images: Tensor) -> bool:
        if number == 3:
            pipe.interrupt()
        return number == 3

    with pytest.raises(OutOfReach) as caught:
        pipe(**call("smc"), reward=Judge(fails))
    assert len(caught.value.best_images) == 2  # type: ignore[attr-defined]


def test_a_call_within_a_reward_raises_what_is_wrong_with_itself() -> None:
    outer, inner = build_pipe(), build_pipe()
    inner.transformer.proj_out.weight.data.fill_(torch.nan)
    said: list[str] = []

    def judge(images: Tensor, prompts: Sequence[str]) -> Tensor:
        with pytest.raises(ValueError, match="has made NaN") as raised:
            inner(**call("none") | {"alignment": Guidance(guide=Guide("isotropic"))})
        said.append(str(raised.value))
        return images.mean((1, 2, 3))

    assert outer(**call("smc"), reward=judge).images.isfinite().all()
    assert said
