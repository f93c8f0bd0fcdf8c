"""The FLUX family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline, GlassTransition, NoAlignment

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators, tiny_preview_vae
from .stock import StockTests

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12}


def prompt_embeds(pipeline: FluxPipeline, prompts: list[str]) -> dict[str, Any]:
    def encode(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return pipeline.encode_prompt(prompt=texts, prompt_2=None, max_sequence_length=12)[:2]

    names = "prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds", "negative_pooled_prompt_embeds"
    return dict(zip(names, (*encode(prompts), *encode(["a ring"] * len(prompts))), strict=True))


FLUX = TinyFamily(
    build=build_tiny_flux,
    call=CALL,
    latents_shape=(4, 16),
    embeds=prompt_embeds,
    variants={
        "true_cfg": {"true_cfg_scale": 2.5, "negative_prompt": ["a ring", "a red ring"]},
        "second_prompts": {
            "prompt_2": ["a ring", "a star"],
            "true_cfg_scale": 2.0,
            "negative_prompt": ["a ring", "a ring"],
            "negative_prompt_2": ["two rings", "three rings"],
        },
        "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
        "guidance_scale": {"guidance_scale": 1.5},
        "joint_attention_kwargs": {"joint_attention_kwargs": {}},
    },
    guided="true_cfg",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 4),
)


class TestSchnell(FamilyTests):
    family = FLUX


class TestDev(StockTests):
    """With an embedding of the guidance scale."""

    family = replace(
        FLUX,
        build=lambda: build_tiny_flux(guidance_embeds=True),
        variants={name: FLUX.variants[name] for name in ("true_cfg", "guidance_scale")},
        apart=tuple({keyword for variant in FLUX.variants.values() for keyword in variant}),
    )


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=True))


def stock_arguments(pipe: DiamondMapPipeline) -> dict[str, Any]:
    parameters = inspect.signature(FluxPipeline.__call__).parameters
    return {**{name: parameter.default for name, parameter in parameters.items()}, **CALL, "prompt": PROMPTS}


def test_the_denoiser_satisfies_the_velocity_identity(pipe: DiamondMapPipeline) -> None:
    conditions = pipe.family.encode(stock_arguments(pipe))
    z, eps = torch.randn(2, 2, 4, 16, generator=generators(1)[0])
    for sigma in (1.0, 0.8, 0.3, 0.05):
        x = (1 - sigma) * z + sigma * eps
        level = pipe.family.path.noise_to_signal(sigma)
        with torch.no_grad():
            denoised = pipe.family.denoise(pipe.family.path.to_bounded(x, sigma), level, conditions)
            velocity = pipe.transformer(
                hidden_states=x,
                timestep=torch.full((2,), sigma),
                guidance=torch.full((2,), 3.5),
                img_ids=conditions.shared["img_ids"],
                txt_ids=torch.zeros(conditions.features["encoder_hidden_states"].shape[1], 3),
                **conditions.features,
            ).sample
        torch.testing.assert_close(denoised, x - sigma * velocity, atol=1e-5, rtol=0)


def test_levels_run_from_pure_noise_to_clean(pipe: DiamondMapPipeline) -> None:
    arguments = stock_arguments(pipe)
    levels = pipe.family.levels(arguments, pipe.family.encode(arguments))
    assert levels[0] == float("inf")
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)
    assert len(levels) == 4


def test_particles_of_an_image_come_from_its_generator(pipe: DiamondMapPipeline) -> None:
    call = {**CALL, "output_type": "pt", "final_selection": "all"}
    call["alignment"] = NoAlignment(transition=GlassTransition(num_inner_steps=2), num_particles=3)
    both = pipe(PROMPTS, generator=generators(), **call).images
    for i in range(2):
        alone = pipe(PROMPTS[i], generator=generators()[i], **call).images
        # Batched kernels round differently.
        torch.testing.assert_close(both[3 * i : 3 * i + 3], alone, atol=1e-4, rtol=0)


def test_guidance_scale_without_an_embedding_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_flux(guidance_embeds=False))
    pipe("a red circle", guidance_scale=2.0, **CALL)
    assert "true_cfg_scale" in caplog.text


def test_negative_embeds_may_be_of_another_length(pipe: DiamondMapPipeline) -> None:
    embeds, pooled, _ = pipe.encode_prompt(prompt=["a ring", "a red ring"], prompt_2=None, max_sequence_length=7)
    negative = {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
    call = {**CALL, "output_type": "pt", "true_cfg_scale": 2.5, **negative}
    stock = pipe.pipeline(PROMPTS, generator=generators(), **call).images
    torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
