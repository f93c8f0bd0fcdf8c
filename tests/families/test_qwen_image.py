"""The Qwen-Image family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from torch import Tensor

from benchmarks.zoo.qwen_image import build_tiny_qwen_image
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.core.levels import RectifiedFlowPath
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 32}
NEGATIVE = ["a ring", "a small red cross"]
GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": NEGATIVE}


def prompt_embeds(pipeline: QwenImagePipeline, prompts: list[str]) -> dict[str, Tensor]:
    embeds, mask = pipeline._get_qwen_prompt_embeds(prompts)
    negative_embeds, negative_mask = pipeline._get_qwen_prompt_embeds(NEGATIVE[: len(prompts)])
    return {
        "prompt_embeds": embeds,
        "prompt_embeds_mask": mask,
        "negative_prompt_embeds": negative_embeds,
        "negative_prompt_embeds_mask": negative_mask,
    }


QWEN_IMAGE = TinyFamily(
    build=build_tiny_qwen_image,
    call=CALL,
    latents_shape=(4, 16),
    embeds=prompt_embeds,
    variants={
        "guided": GUIDED,
        "prompts_without_padding": {"true_cfg_scale": 2.5, "negative_prompt": ["a ring", "a star"]},
        "guidance_scale": {"guidance_scale": 3.0},
        "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
        "attention_options": {"attention_kwargs": {"scale": 0.5}},
    },
    guided="guided",
    lora_targets=("to_q", "to_v", "img_mlp.net.2", "proj_out"),
)


class TestQwenImage(FamilyTests):
    family = QWEN_IMAGE


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_qwen_image())


def encode(pipe: DiamondMapPipeline, **call: Any) -> Conditions:
    return pipe.family.encode(resolve_arguments(pipe.family, {**CALL, "prompt": PROMPTS, **call}, {}))


@torch.no_grad()
def test_prediction_is_the_guided_velocity_of_positive_norm(pipe: DiamondMapPipeline) -> None:
    path = RectifiedFlowPath()
    conditions = encode(pipe, **GUIDED)
    embeds = prompt_embeds(pipe.pipeline, PROMPTS)
    x = torch.randn(2, 4, 16, generator=generators(1)[0])
    for time in (1.0, 0.77, 0.3, 0.02):
        positive, negative = (
            pipe.transformer(
                hidden_states=x,
                timestep=torch.full((2,), time),
                encoder_hidden_states=embeds[f"{prefix}prompt_embeds"],
                encoder_hidden_states_mask=embeds[f"{prefix}prompt_embeds_mask"],
                img_shapes=[[(1, 2, 2)]] * 2,
            ).sample
            for prefix in ("", "negative_")
        )
        predicted = pipe.family.predict(path.to_bounded(x, time), path.noise_to_signal(time), conditions)
        guided = 4 * positive - 3 * negative
        guided = guided * positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(predicted, x - time * guided, atol=2e-5, rtol=0)
        assert (positive - negative).abs().max() > 0.01


def test_prompts_of_other_lengths_are_masked(pipe: DiamondMapPipeline) -> None:
    prompts = ["a ring", "a small red circle left of a blue star"]
    call = {**CALL, "output_type": "pt"}
    together = pipe(prompts, generator=generators(), **call).images
    for i, prompt in enumerate(prompts):
        alone = pipe.pipeline(prompt, generator=generators(1, first=i), **call).images
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=0)
    assert "encoder_hidden_states_mask" not in encode(pipe, prompt=prompts[:1]).features


def test_keywords_without_effect_are_warned_of(pipe: DiamondMapPipeline, caplog: pytest.LogCaptureFixture) -> None:
    encode(pipe)
    assert not caplog.records
    encode(pipe, guidance_scale=3.0)
    assert "guidance_scale is 3.0" in caplog.text
    encode(pipe, true_cfg_scale=1.0, negative_prompt="a ring")
    assert "true_cfg_scale 1.0" in caplog.text


def test_a_guidance_embedding_is_refused() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_qwen_image())
    pipe.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(ValueError, match="guidance_embeds=False"):
        encode(pipe)
