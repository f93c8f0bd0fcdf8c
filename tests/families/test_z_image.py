"""The Z-Image family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import ZImagePipeline
from torch import Tensor

from benchmarks.counting import counted
from benchmarks.zoo.z_image import build_tiny_z_image
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.core.levels import RectifiedFlowPath
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators, tiny_preview_vae

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 48, "guidance_scale": 0.0}
# Longer than what the network pads prompts to, so that they are padded to each other.
LONG = " ".join(["a red ring"] * 12)
GUIDED = {"guidance_scale": 2.0, "negative_prompt": ["a ring", LONG]}


def prompt_embeds(pipeline: ZImagePipeline, prompts: list[str]) -> dict[str, list[Tensor]]:
    embeds, negative_embeds = pipeline.encode_prompt(
        list(prompts), negative_prompt=GUIDED["negative_prompt"][: len(prompts)], max_sequence_length=48
    )
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative_embeds}


Z_IMAGE = TinyFamily(
    build=build_tiny_z_image,
    call=CALL,
    latents_shape=(4, 4, 4),
    embeds=prompt_embeds,
    variants={
        "guided": GUIDED,
        "default_negative_prompt": {"guidance_scale": 1.5},
        "normalised": {**GUIDED, "cfg_normalization": True},
        "normalised_to_half": {**GUIDED, "cfg_normalization": 0.5},
        "truncated": {**GUIDED, "num_inference_steps": 4, "cfg_truncation": 0.3},
        "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
        "attention_options": {"joint_attention_kwargs": {"scale": 0.5}},
    },
    guided="guided",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 4),
)


class TestZImage(FamilyTests):
    family = Z_IMAGE

    def images(self, pipe: Any, *prompts: Any, **call: Any) -> Tensor:
        # The stock pipeline writes its chat template into the lists that it is given.
        prompts = tuple(prompt and list(prompt) for prompt in prompts or (PROMPTS,))
        if call.get("negative_prompt"):
            call["negative_prompt"] = list(call["negative_prompt"])
        return super().images(pipe, *prompts, **call)


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_z_image())


def encode(pipe: DiamondMapPipeline, **call: Any) -> Conditions:
    return pipe.family.encode(resolve_arguments(pipe.family, {**CALL, "prompt": PROMPTS, **call}, {}))


def test_prompts_are_left_as_they_are(pipe: DiamondMapPipeline) -> None:
    prompts, negative_prompts = ["a red circle", "a ring"], ["a star", "a cross"]
    pipe(prompts, **{**CALL, "guidance_scale": 1.0, "negative_prompt": negative_prompts})
    assert (prompts, negative_prompts) == (["a red circle", "a ring"], ["a star", "a cross"])


@torch.no_grad()
def test_prediction_is_the_guided_velocity_in_reversed_time(pipe: DiamondMapPipeline) -> None:
    path = RectifiedFlowPath()
    conditions = encode(pipe, **GUIDED)
    embeds = prompt_embeds(pipe.pipeline, PROMPTS)
    x = torch.randn(2, 4, 4, 4, generator=generators(1)[0])
    for time in (1.0, 0.77, 0.3, 0.02):
        network_time = torch.full((2,), 1 - time)
        positive, negative = (
            -torch.stack(pipe.transformer(list(x.unsqueeze(2)), network_time, embeds[name]).sample).squeeze(2)
            for name in ("prompt_embeds", "negative_prompt_embeds")
        )
        predicted = pipe.family.predict(path.to_bounded(x, time), path.noise_to_signal(time), conditions)
        guided = positive + 2 * (positive - negative)
        torch.testing.assert_close(predicted, x - time * guided, atol=2e-5, rtol=0)
        assert (positive - negative).abs().max() > 0.01


def test_truncated_guidance_costs_one_evaluation(pipe: DiamondMapPipeline) -> None:
    with counted(pipe) as counts:
        schedule = {"sigmas": [1.0, 0.75, 0.5, 0.25], "num_inference_steps": 4}
        out = pipe(PROMPTS, **{**CALL, **GUIDED, **schedule, "cfg_truncation": 0.3})
    # Dynamic shifting raises the levels a little: only the last two are below 1 - 0.3.
    levels = pipe.prepare(PROMPTS, **{**CALL, **GUIDED, **schedule, "cfg_truncation": 0.3}).levels()[:-1]
    sigmas = [1.0 if level == float("inf") else level / (1 + level) for level in levels]
    expected = sum(2 if 1 - sigma <= 0.3 else 1 for sigma in sigmas)
    assert 4 < expected < 8
    assert out.cost.network_evaluations == counts.network == 2 * expected


@torch.no_grad()
def test_rows_at_different_levels_are_guided_each_by_its_own(pipe: DiamondMapPipeline) -> None:
    conditions = encode(pipe, **GUIDED, cfg_truncation=0.5)
    levels, x = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.randn(2, 4, 4, 4, generator=generators(1)[0])
    assert [pipe.family.evaluations_per_row(level, conditions) for level in levels] == [2, 1]
    both = pipe.family.predict(x, levels, conditions)
    for i in range(2):
        row = torch.tensor([i])
        alone = pipe.family.predict(x[row], float(levels[i]), conditions.rows(row))
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"height": 18}, "height is 18"),
        ({"guidance_scale": 1.0, "negative_prompt": ["a ring"] * 3}, "negative_prompt holds 3 rows for 2 prompts"),
        ({"guidance_scale": 1.0, "prompt": None, "prompt_embeds": [torch.zeros(3, 16)]}, "negative_prompt_embeds is"),
    ],
)
def test_bad_arguments_are_named(pipe: DiamondMapPipeline, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(**{**CALL, "prompt": PROMPTS, **call})
