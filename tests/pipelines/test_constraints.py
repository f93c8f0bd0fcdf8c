"""Calls under constraints: every method keeps to them, says whether an image holds, and warns where none does."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from diamond_diffusers import SMC, DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment import reward_errors
from diamond_diffusers.rewards import Brightness, CallableReward, Reward

from ..products import one_of_each_kind
from .test_iterate import NAMES, PROMPTS, build_pipe, call

CASES = one_of_each_kind([name for name in NAMES if name != "none"], ("smc", "noise_optimization"))


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return build_pipe()


def redness(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 0].mean((1, 2))


def judge() -> Reward:
    """A black box."""
    return CallableReward(redness, "redness", differentiable=False)


def run(pipe: DiamondMapPipeline, name: str, reward: Any, **options: Any) -> Any:
    return pipe(**{**call(name), **options}, reward=reward)


@pytest.mark.parametrize("name", CASES)
def test_the_output_says_whether_an_image_holds_whatever_the_method(pipe: DiamondMapPipeline, name: str) -> None:
    reward = Brightness() + (judge() < 0.5)
    out = run(pipe, name, reward)
    assert list(out.reward_terms) == ["brightness", "redness"]
    assert out.constraints_met.tolist() == (out.reward_terms["redness"] < 0.5).tolist()
    # The total is what is maximised, as without constraints.
    torch.testing.assert_close(out.rewards, out.reward_terms["brightness"])
    torch.testing.assert_close(out.reward_terms["redness"], redness(out.images, PROMPTS), atol=1e-5, rtol=0)
    one_by_one = run(pipe, name, reward, particle_batch_size=1)
    torch.testing.assert_close(one_by_one.images, out.images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("scale", [50.0, 0.0, -50.0])
def test_an_image_that_holds_is_taken_before_a_brighter_one(pipe: DiamondMapPipeline, scale: float) -> None:
    drawn = {"alignment": {"name": "best_of_n", "num_particles": 6}, "reward_scale": scale}
    everything = run(pipe, "best_of_n", Brightness() + (judge() < 1), **drawn, final_selection="all")
    scores = everything.reward_terms["redness"].reshape(2, 6)
    bound = scores.median().item()
    best = run(pipe, "best_of_n", Brightness() + (judge() < bound), **drawn)
    brightness = everything.rewards.reshape(2, 6)
    for image in range(2):
        allowed = (scores[image] < bound).nonzero().flatten()
        expected = allowed[(scale * brightness[image, allowed]).argmax()] if len(allowed) else scores[image].argmin()
        torch.testing.assert_close(best.rewards[image], brightness[image, expected])


def test_one_warning_says_that_no_image_holds(pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "diamond_diffusers"):
        out = run(pipe, "smc", Brightness() + (judge() < 0.01))
        assert not out.constraints_met.any() and torch.isneginf(out.log_evidence).all()
        run(pipe, "none", Brightness() + (judge() < 0.01))
        assert run(pipe, "smc", Brightness() + (judge() < 0.99)).constraints_met.all()
        assert run(pipe, "smc", Brightness()).constraints_met is None
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("For 2 of 2 images no sample was found that holds every constraint of the reward 'bright")
    # Samples drawn by weight would be the nearest of the particles.
    assert "brightness, redness < 0.01" in message


def test_a_gradient_method_takes_a_black_box_as_a_constraint_but_not_as_a_reward(pipe: DiamondMapPipeline) -> None:
    guided = {"alignment": Guidance(guide=Guide("isotropic")), "reward_scale": 20.0}
    free, bounded = (run(pipe, "guidance", reward, **guided) for reward in (Brightness(), Brightness() + (judge() < 1)))
    torch.testing.assert_close(bounded.images, free.images, rtol=0, atol=0)
    for reward in (Brightness() + judge(), judge() < 0.5):
        with pytest.raises(ValueError, match="no gradient"):
            run(pipe, "guidance", reward, **guided)
    # One that is differentiable draws the image towards the bound.
    lower = run(pipe, "guidance", Brightness() < 0.2, **guided)
    assert (lower.reward_terms["brightness"] < free.reward_terms["brightness"]).all()


def test_images_without_a_score_hold_nothing(pipe: DiamondMapPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("alignment.reward_errors", "pipelines.resolution"):
        monkeypatch.setattr(f"diamond_diffusers.{module}.RETRY_DELAYS", (0.0, 0.0, 0.0))
    calls: list[int] = []

    def fails_often(images: Tensor, prompts: list[str]) -> Tensor:
        calls.append(len(images))
        if len(calls) > 1 and len(calls) % 2 == 0:
            raise OSError("no answer")
        return redness(images, prompts)

    reward = Brightness() + (CallableReward(fails_often, "redness", differentiable=False) < 0.99)
    drawn = {"alignment": {"name": "best_of_n", "num_particles": 4}, "final_selection": "all"}
    out = run(pipe, "best_of_n", reward, **drawn, on_reward_error="skip")
    failed = out.rewards.isnan()
    assert failed.any() and not failed.all()
    assert out.constraints_met.tolist() == (~failed).tolist()
    assert out.cost.reward_calls == sum(calls)
    assert reward_errors.RETRY_DELAYS == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("fails_every", [1, 2])
def test_of_images_without_a_score_nothing_is_said(
    pipe: DiamondMapPipeline,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails_every: int,
) -> None:
    for module in ("alignment.reward_errors", "pipelines.resolution"):
        monkeypatch.setattr(f"diamond_diffusers.{module}.RETRY_DELAYS", ())
    calls: list[int] = []

    def fails(images: Tensor, prompts: list[str]) -> Tensor:
        calls.append(len(images))
        if len(calls) > 1 and len(calls) % fails_every == 0:
            raise OSError("no answer")
        return redness(images, prompts)

    reward = Brightness() + (CallableReward(fails, "redness", differentiable=False) < 0.01)
    with caplog.at_level(logging.WARNING, "diamond_diffusers.pipelines.output"):
        out = run(pipe, "smc", reward, on_reward_error="skip", particle_batch_size=1, final_selection="all")
    assert not out.constraints_met.any() and out.rewards.isnan().any()
    # Of particles some of which violate it and the others of which are not known to hold, none tells an evidence.
    assert torch.isneginf(out.log_evidence).all() and torch.isneginf(out.trace.steps[-1].log_evidence).all()
    # That no image holds is known where all have a score, or some violate.
    warned = any(record.getMessage().startswith("For 2 of 2 images no sample") for record in caplog.records)
    assert warned == (fails_every == 2) == (not out.rewards.isnan().all())


def test_in_threads(pipe: DiamondMapPipeline) -> None:
    reward = Brightness() + (judge() < 0.5)
    options = [{"alignment": SMC(num_particles=count)} for count in (2, 3)]
    expected = [run(pipe, "smc", reward, **option) for option in options]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda option: run(pipe, "smc", reward, **option), options))
    for one, other in zip(expected, found, strict=True):
        assert one.images.equal(other.images) and one.constraints_met.equal(other.constraints_met)
