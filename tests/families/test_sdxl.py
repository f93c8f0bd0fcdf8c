"""The SDXL family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler, StableDiffusionXLPipeline
from torch import Tensor

from benchmarks.zoo.stable_diffusion import (
    IMAGE_EMBED_SIZE,
    LATENTS_SHAPE,
    SCHEDULE,
    add_ip_adapter,
    build_tiny_sdxl,
    kohya_lora,
    lora,
)
from diamond_diffusers import DiamondMapPipeline, Guidance, Guide

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, brightness, generators, tiny_preview_vae
from .stock import StockTests

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 1.0}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": ["a ring", "a red ring"]}
SIZES = {"original_size": (40, 24), "crops_coords_top_left": (4, 2), "target_size": (16, 32)}
NEGATIVE_SIZES = {f"negative_{name}": (8, 12) for name in SIZES}


def prompt_embeds(pipeline: StableDiffusionXLPipeline, prompts: list[str]) -> dict[str, Any]:
    encoded = pipeline.encode_prompt(prompts, negative_prompt=["a ring"] * len(prompts))
    names = "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"
    return dict(zip(names, encoded, strict=True))


SDXL = TinyFamily(
    build=build_tiny_sdxl,
    call=CALL,
    latents_shape=LATENTS_SHAPE,
    embeds=prompt_embeds,
    variants={
        "guided": GUIDED,
        "zeros": {"guidance_scale": 3.0},
        "second_prompts": {**GUIDED, "prompt_2": ["a ring", "a star"], "negative_prompt_2": ["two rings", "a heart"]},
        "rescaled": {**GUIDED, "guidance_rescale": 0.7},
        "sizes": {**GUIDED, **SIZES},
        "clip_skip": {**GUIDED, "clip_skip": 1},
        "timesteps": {"timesteps": [999, 600, 100]},
        "sigmas": {"sigmas": [12.0, 3.0, 0.5, 0.0]},
        "eta": {"eta": 0.5},
        "cross_attention_kwargs": {"cross_attention_kwargs": {"scale": 0.5}},
    },
    guided="guided",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 2),
    apart=("ip_adapter_image", "ip_adapter_image_embeds", *NEGATIVE_SIZES),
)


class TestBase(FamilyTests):
    family = SDXL


class TestTurbo(StockTests):
    """Two ancestral steps without guidance, and a VAE whose latents have a mean and a deviation."""

    @staticmethod
    def build() -> StableDiffusionXLPipeline:
        pipeline = build_tiny_sdxl(latents_mean=(0.3, -0.2, 0.1, 0.5), latents_std=(1.5, 0.7, 1.1, 0.9))
        pipeline.scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
        pipeline.register_to_config(_name_or_path="stabilityai/sdxl-turbo")
        return pipeline

    family = replace(
        SDXL,
        build=build,
        call={**CALL, "guidance_scale": 0.0, "num_inference_steps": 2},
        variants={},
        apart=tuple({*SDXL.apart, *(keyword for variant in SDXL.variants.values() for keyword in variant)}),
    )

    def test_it_is_a_flow_map(self, pipe: DiamondMapPipeline) -> None:
        assert pipe.family.has_flow_map
        assert not pipe.family.has_denoiser


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_sdxl())


def images(pipe: Any, prompts: list[str] = PROMPTS, **call: Any) -> Tensor:
    call = {**CALL, "output_type": "pt", **call}
    return pipe(prompts, generator=generators(len(prompts)), **call).images


def test_negative_sizes_are_those_of_a_stock_batch_of_one(pipe: DiamondMapPipeline) -> None:
    call = {"guidance_scale": 3.0, **SIZES, **NEGATIVE_SIZES}
    stock = images(pipe.pipeline, PROMPTS[:1], **call)
    torch.testing.assert_close(images(pipe, PROMPTS[:1], **call), stock, atol=1e-4, rtol=0)
    torch.testing.assert_close(images(pipe, **call)[:1], stock, atol=1e-4, rtol=0)
    assert (images(pipe, PROMPTS[:1], **{**call, "negative_target_size": None}) - stock).abs().max() > 1e-3


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_image_prompts(guidance_scale: float) -> None:
    pipe = DiamondMapPipeline.from_pipe(add_ip_adapter(build_tiny_sdxl()))
    rows = 1 if guidance_scale == 1 else 2
    embeds = torch.randn(rows, 1, IMAGE_EMBED_SIZE, generator=generators(1)[0])
    call = {"guidance_scale": guidance_scale, "ip_adapter_image_embeds": [embeds]}
    stock = images(pipe.pipeline, **call)
    torch.testing.assert_close(images(pipe, **call), stock, atol=1e-4, rtol=0)
    assert (images(pipe, **{**call, "ip_adapter_image_embeds": [-embeds]}) - stock).abs().mean() > 1e-3


def test_a_noisy_result_is_refused(pipe: DiamondMapPipeline) -> None:
    with pytest.raises(TypeError, match="'denoising_end' cannot be used"):
        images(pipe, denoising_end=0.8)


def test_a_vae_that_overflows_in_float16_decodes_in_float32_and_is_put_back() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sdxl(force_upcast=True).to(torch.float16))
    seen = []
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    latents = torch.randn(2, *LATENTS_SHAPE, generator=generators(1)[0]).half()
    call = {**CALL, "output_type": "pt", "latents": latents}
    stock = pipe.pipeline(PROMPTS, **call).images
    ours = pipe(PROMPTS, **call).images
    assert seen == [torch.float32] * 2
    assert pipe.vae.dtype == torch.float16
    assert (ours - stock).abs().mean() < 3 / 255
    out = pipe(PROMPTS, reward=brightness, alignment=Guidance(guide=Guide("pathwise")), **call)
    assert all(step.gradient_norm.isfinite().all() and step.gradient_norm.min() > 0 for step in out.trace.steps)
    with pytest.raises(ValueError, match="num_images_per_prompt"):
        pipe(PROMPTS, **{**call, "num_images_per_prompt": 0})
    assert pipe.vae.dtype == torch.float16


class Stamp:
    """Stands in for the invisible watermark, which needs images of 256 pixels and a further package."""

    def apply_watermark(self, images: Tensor) -> Tensor:
        assert images.min() < 0
        return torch.cat([images[..., :-1], torch.full_like(images[..., -1:], 0.5)], -1)


def test_the_watermark_is_the_stock_one(pipe: DiamondMapPipeline) -> None:
    plain = images(pipe)
    pipe.watermark = Stamp()
    try:
        stock = images(pipe.pipeline)
        torch.testing.assert_close(images(pipe), stock, atol=1e-4, rtol=0)
        latents = images(pipe, output_type="latent")
    finally:
        pipe.watermark = None
    torch.testing.assert_close(stock[..., -1], torch.full_like(stock[..., -1], 0.75))
    torch.testing.assert_close(stock[..., :-1], plain[..., :-1], atol=1e-4, rtol=0)
    assert torch.equal(images(pipe, output_type="latent"), latents)


def test_an_lcm_lora_samples_as_in_the_stock_pipeline() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sdxl())
    weights = lora(pipe.unet, 1)
    before = images(pipe)
    pipe.load_lora_weights(weights, adapter_name="lcm")
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.few_step = "lcm"
    assert pipe.family.has_flow_map
    assert pipe.family.has_denoiser
    stock = images(pipe.pipeline, num_inference_steps=4)
    torch.testing.assert_close(images(pipe, num_inference_steps=4), stock, atol=1e-4, rtol=0)
    assert (before - stock).abs().mean() > 1e-3


def test_a_lora_named_by_the_blocks_of_the_original_checkpoint_loads() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sdxl())
    plain = images(pipe)
    pipe.load_lora_weights(kohya_lora("input_blocks_3_1_transformer_blocks_0_attn1_to_q"), adapter_name="style")
    assert (images(pipe) - plain).abs().max() > 1e-4
    with pytest.raises(ValueError, match="made for another model"):
        pipe.load_lora_weights(kohya_lora("input_blocks_3_1_transformer_blocks_7_attn1_to_q"), adapter_name="other")
