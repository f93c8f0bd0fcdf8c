"""Dry runs: what stands in for models and rewards, and what is counted."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.core.cost import Cost
from diamond_diffusers.evaluation.dry_run.checkpoints import CHECKPOINTS, Checkpoint, find_checkpoint
from diamond_diffusers.evaluation.dry_run.counting import DryRun, table
from diamond_diffusers.evaluation.dry_run.families import TINY_PIPELINES
from diamond_diffusers.evaluation.dry_run.parts import Part
from diamond_diffusers.evaluation.dry_run.rewards import num_tried, stand_in_reward
from diamond_diffusers.evaluation.dry_run.stand_ins import save_stand_in
from diamond_diffusers.families.registry import FAMILIES
from diamond_diffusers.rewards import REWARDS, CallableReward, staged
from diamond_diffusers.rewards.remote import RemoteReward
from tests.cli.invoking import refusal, succeed
from tests.conftest import redness


def test_a_stand_in_has_the_properties_of_the_reward_and_scores_by_itself():
    reward = stand_in_reward("imagereward + 5*hpsv2, nsfw < 0.2")
    assert reward.differentiable and reward.is_constrained and reward.name == "imagereward + 5*hpsv2, nsfw < 0.2"
    assert reward.default_reward_scale is not None and not stand_in_reward("imagereward + ocr").differentiable
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    output = reward.evaluate(images, ["a", "b"])
    torch.testing.assert_close(output.total, 6 * images.mean((1, 2, 3)))
    assert output.total.requires_grad and num_tried(reward) == 0
    assert reward.probe(needs_gradient=True) == num_tried(reward) == 1
    with pytest.raises(ValueError, match="magic"):
        stand_in_reward("magic")


def test_functions_and_stages_of_a_user_are_not_asked(monkeypatch):
    asked = []
    monkeypatch.setitem(REWARDS._entries, "own_stages", staged(["brightness", ("colour", 2)]))
    monkeypatch.setitem(
        REWARDS._entries, "own_function", lambda images, prompts: asked.append(len(images)) or images[:, 0, 0, 0]
    )
    stages, function = stand_in_reward("own_stages"), stand_in_reward("own_function")
    assert stages.num_scores(4) == 2 and [stage.keep for stage in stages.later] == [2]
    assert stages.first.name == "brightness" and stages.probe() == num_tried(stages) == 1
    # Whether it is differentiable is found out on one image.
    assert function.differentiable and len(asked) <= 2 and not function.is_dear
    asked.clear()
    function(torch.rand(2, 3, 8, 8), ["a", "b"])
    assert asked == []


def test_a_dear_reward_stays_dear(monkeypatch):
    # Alignment `"auto"` asks it for few scores, in a dry run as in a real one.
    monkeypatch.setitem(REWARDS._entries, "own_paid", CallableReward(redness, is_dear=True))
    monkeypatch.setitem(REWARDS._entries, "own_service", type("Service", (RemoteReward,), {}))
    assert stand_in_reward("own_paid").is_dear and stand_in_reward("brightness + own_service").is_dear


def test_counts_are_those_of_an_image_and_of_all_of_them():
    drawn = Cost(network_evaluations=20, backward_passes=6, decodes=4, reward_calls=5)
    run = DryRun("smc_16", drawn, num_tried=1, num_drawn=2, num_images=10, num_calls=3)
    assert list(run.of_image().values()) == [10, 3, 2, 2]
    assert list(run.of_experiment().values()) == [100, 30, 20, 23]
    assert table([run]).rows == [
        ["smc_16", "an image", "10", "3", "2", "2", "16", "10"],
        ["smc_16", "10 images", "100", "30", "20", "23", "160", "100"],
    ]
    # A cost that is no whole number an image is shown as it is.
    assert next(DryRun("a", drawn, 0, 3, 3, 1).rows())[2] == "6.7"
    assert [row[1] for row in DryRun("a", drawn, 0, 1, 1, 1).rows()] == ["an image", "1 image"]


@pytest.mark.parametrize("pixels", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_noise_levels_are_those_of_the_full_size(tmp_path, pixels):
    folder = save_stand_in("black-forest-labs/FLUX.1-dev", tmp_path, pixels, pixels)
    call = DiamondMapPipeline.from_pretrained(folder).prepare("a star", num_inference_steps=5)
    with call.active():
        levels = call.levels()
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    # FLUX's shift grows from 0.5 at 256 tokens of 16 pixels to 1.15 at 4096.
    tokens = (pixels // 16) ** 2
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.6, 0.4, 0.2], mu=0.5 + 0.65 * (tokens - 256) / (4096 - 256))
    times = scheduler.sigmas.double()
    expected = (times / (1 - times)).tolist()
    assert levels[0] == math.inf and levels[1:] == pytest.approx(expected[1:], rel=1e-5)
    assert call.arguments.height == 32


def test_a_folder_is_known_by_its_small_files(tiny_folder):
    checkpoint = find_checkpoint(str(tiny_folder), {})
    assert (checkpoint.pipeline, checkpoint.network) == ("FluxPipeline", {"guidance_embeds": False})
    assert checkpoint.scheduler.class_name == "FlowMatchEulerDiscreteScheduler"
    with pytest.raises(ValueError, match="--dry-run has no tiny LTXPipeline; it has one of FluxPipeline"):
        _ = Checkpoint("LTXPipeline", Part("DDIMScheduler")).tiny


def test_tiny_pipelines_are_of_classes_with_a_family():
    assert set(TINY_PIPELINES.names()) <= set(FAMILIES.names())
    assert {checkpoint.pipeline for checkpoint in CHECKPOINTS.values()} <= set(TINY_PIPELINES.names())


@pytest.mark.slow
@pytest.mark.parametrize("model", CHECKPOINTS)
def test_every_known_checkpoint_has_a_stand_in_that_draws(model, tmp_path):
    pipe = DiamondMapPipeline.from_pretrained(save_stand_in(model, tmp_path))
    assert pipe.family.is_few_step == ("turbo" in model or "schnell" in model or "Sprint" in model)
    assert pipe("a star", num_inference_steps=1, output_type="pt").images.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "SanaPipeline", "LatentConsistencyModelPipeline"])
def test_classes_without_a_known_checkpoint_draw(name, tmp_path, monkeypatch):
    schedulers = {
        "StableDiffusion3Pipeline": "FlowMatchEulerDiscreteScheduler",
        "SanaPipeline": "FlowMatchEulerDiscreteScheduler",
    }
    scheduler = Part(schedulers.get(name, "LCMScheduler"))
    monkeypatch.setitem(CHECKPOINTS, "a/model", Checkpoint(name, scheduler))
    pipe = DiamondMapPipeline.from_pretrained(save_stand_in("a/model", tmp_path))
    assert pipe("a star", num_inference_steps=2, output_type="pt").images.isfinite().all()


DRAWN = ("generate", "a red star", "--num-inference-steps", 2, "--dry-run")


def test_generate_prints_the_cost_of_all_prompts_and_writes_nothing(tmp_path):
    out = tmp_path / "out"
    printed = succeed(
        *DRAWN, "two stars", "three stars", "--alignment", "best_of_n", "-o", "num_particles=3", "--output", out
    )
    rows = [line.split() for line in printed.splitlines() if line.startswith(("plain ", "aligned "))]
    # Two evaluations a step under guidance; one trial of the reward a call.
    assert rows == [
        ["plain", "an", "image", "4", "0", "1", "1", "4", "4"],
        ["plain", "3", "images", "12", "0", "3", "4", "12", "12"],
        ["aligned", "an", "image", "12", "0", "3", "3", "12", "12"],
        ["aligned", "3", "images", "36", "0", "9", "10", "36", "36"],
    ]
    assert "Counted on 1 of 3 images" in printed and not out.exists()


def test_what_auto_would_choose_is_printed():
    printed = succeed(*DRAWN, "--max-reward-calls", 2, "--no-plain")
    assert "aligned: alignment 'auto' has chosen BestOfN" in printed and "a reward that is dear" in printed


@pytest.mark.slow
def test_a_diamond_map_stands_in(tmp_path):
    model = ("--model", "stable-diffusion-v1-5/stable-diffusion-v1-5", "--diamond-map", "someone/map")
    method = (
        "--alignment",
        "posterior_diamond_map",
        "--reward",
        "pickscore",
        "--no-plain",
        "--output",
        tmp_path / "out",
    )
    printed = succeed(*DRAWN, *model, *method)
    assert "aligned an image" in " ".join(printed.split())


def test_what_is_no_model_gets_one_sentence(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    assert f"--model is '{folder}', which cannot be loaded" in refusal(*DRAWN, "--model", folder, "--reward", "clip")


def test_what_depends_on_scores_is_refused():
    assert "--watch is sharpness, whose cost depends on the scores" in refusal(
        *DRAWN, "--alignment", "random_search", "--watch", "sharpness"
    )
    assert "--share-budget-at is 3.0, whose cost depends on the scores" in refusal(*DRAWN, "--share-budget-at", 3)
    assert "--share-budget-verifier is pickscore < 1, whose cost depends on the scores" in refusal(
        *DRAWN, "--share-budget-verifier", "pickscore < 1"
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--shard", "1/2"), "--shard is 1/2"),
        (("--report-only",), "--report-only is True"),
        (("--budgets-seconds", "2"), "--budgets-seconds is 2"),
    ],
)
def test_what_is_about_a_real_comparison_is_refused(option, told):
    assert f"{told}, which is about images or seconds of a real run" in refusal("benchmark", "--dry-run", *option)
