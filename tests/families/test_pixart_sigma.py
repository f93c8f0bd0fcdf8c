"""PixArt-Sigma is read as its stock pipeline reads itself, under each kind of scheduler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PixArtSigmaPipeline,
)
from peft import LoraConfig, inject_adapter_in_model

from benchmarks.zoo.pixart_sigma import BETAS, LATENTS_SHAPE, build_tiny_pixart_sigma
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators

CALL = {
    "height": 16,
    "width": 16,
    "use_resolution_binning": False,
    "max_sequence_length": 8,
    # DDIM ends its steps where the next begin only if their number divides that of the training steps.
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "clean_caption": False,
}
SCHEDULERS = {
    "ddim_trailing": DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"),
    "ddim_leading": DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, set_alpha_to_one=False),
    "euler": EulerDiscreteScheduler(**BETAS),
    "euler_ancestral": EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing"),
    "first_order_dpm_solver": DPMSolverMultistepScheduler(**BETAS, solver_order=1),
    "lcm": LCMScheduler(**BETAS),
}


def embeds(pipeline: PixArtSigmaPipeline, prompts: list[str]) -> dict[str, Any]:
    """The stock default negative prompt must go where there are embeddings."""
    encoded = pipeline.encode_prompt(prompts, max_sequence_length=8)
    names = ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"]
    return {"negative_prompt": None, **dict(zip(names, encoded, strict=True))}


FAMILY = TinyFamily(
    build=build_tiny_pixart_sigma,
    call=CALL,
    latents_shape=LATENTS_SHAPE,
    embeds=embeds,
    apart=("timesteps", "sigmas"),
    guided="negative_prompt",
    variants={
        "negative_prompt": {"negative_prompt": ["a ring", "three green hearts"], "guidance_scale": 2.5},
        "eta": {"eta": 0.6},
    },
    has_lora=False,
)


class TestPixArtSigma(FamilyTests):
    family = FAMILY


def with_scheduler(name: str) -> PixArtSigmaPipeline:
    pipeline = build_tiny_pixart_sigma()
    pipeline.scheduler = SCHEDULERS[name]
    return pipeline


def stock_images(pipeline: PixArtSigmaPipeline, **call: object) -> torch.Tensor:
    return pipeline(PROMPTS, generator=generators(), **{**CALL, "output_type": "pt", **call}).images


def our_images(pipeline: PixArtSigmaPipeline, **call: object) -> torch.Tensor:
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    return pipe(PROMPTS, generator=generators(), **{**CALL, "output_type": "pt", **call}).images


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_reproduce_the_stock_latents(name: str) -> None:
    pipeline = with_scheduler(name)
    # Images would hide a wrong scale: the decoder normalises.
    call = {"guidance_scale": 2.0, "num_inference_steps": 4, "output_type": "latent"}
    torch.testing.assert_close(our_images(pipeline, **call), stock_images(pipeline, **call), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("first_order_dpm_solver", {"timesteps": [900, 500, 100]}),
        ("euler", {"sigmas": [4.0, 2.0, 0.5, 0.0]}),
    ],
)
def test_custom_schedules_reproduce_the_stock_latents(name: str, schedule: dict) -> None:
    pipeline = with_scheduler(name)
    expected = stock_images(pipeline, output_type="latent", **schedule)
    torch.testing.assert_close(our_images(pipeline, output_type="latent", **schedule), expected, atol=1e-4, rtol=0)
    assert (expected - stock_images(pipeline, output_type="latent")).abs().max() > 1e-2


@pytest.mark.parametrize("learned_variances", [True, False])
def test_denoiser_is_the_schedulers_predicted_sample(learned_variances: bool) -> None:
    pipeline = with_scheduler("ddim_trailing")
    if not learned_variances:
        torch.manual_seed(1)
        config = pipeline.transformer.config
        pipeline.transformer = type(pipeline.transformer).from_config(config, out_channels=4).eval()
    family = DiamondMapPipeline.from_pipe(pipeline).family
    conditions = family.encode(resolve_arguments(family, {**CALL, "prompt": PROMPTS, "guidance_scale": 3.0}, {}))
    latents = torch.randn(2, *LATENTS_SHAPE, generator=torch.Generator().manual_seed(0))
    pipeline.scheduler.set_timesteps(1000)
    for timestep in (999, 600, 50):
        with torch.no_grad():
            guided, unguided = (
                pipeline.transformer(latents, timestep=torch.tensor([timestep] * 2), return_dict=False, **features)[0]
                for features in (conditions.features, conditions.negative_features)
            )
        noise = (unguided + 3.0 * (guided - unguided))[:, :4]
        expected = pipeline.scheduler.step(noise, timestep, latents).pred_original_sample
        abar = pipeline.scheduler.alphas_cumprod[timestep].double()
        denoised = family.denoise(latents, torch.sqrt(1 / abar - 1), conditions)
        torch.testing.assert_close(denoised, expected, atol=2e-5, rtol=1e-5)


def test_levels_are_those_of_the_stock_scheduler() -> None:
    pipeline = with_scheduler("ddim_trailing")
    family = DiamondMapPipeline.from_pipe(pipeline).family
    arguments = resolve_arguments(family, {**CALL, "prompt": PROMPTS, "num_inference_steps": 4}, {})
    levels = family.levels(arguments, family.encode(arguments))
    abar = pipeline.scheduler.alphas_cumprod.double()[[999, 749, 499, 249]]
    assert levels == pytest.approx([*torch.sqrt(1 / abar - 1).tolist(), 0.0])


def test_lora_is_injected_where_stock_diffusers_has_no_loader() -> None:
    pipeline = build_tiny_pixart_sigma()
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    with pytest.raises(AttributeError, match=r"no LoRA loader for PixArtSigmaPipeline.*inject_adapter_in_model"):
        pipe.load_lora_weights({})
    plain = our_images(pipeline)
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["to_q", "to_v"], init_lora_weights=False)
    inject_adapter_in_model(config, pipe.transformer)
    styled = our_images(pipeline)
    torch.testing.assert_close(styled, stock_images(pipeline), atol=1e-4, rtol=0)
    assert (styled - plain).abs().max() > 1e-2
