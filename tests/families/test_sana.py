"""SANA is read as its stock pipeline reads itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, SanaPipeline

from benchmarks.zoo.sana import LATENTS_SHAPE, build_tiny_sana, build_tiny_sana_sprint
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.core.levels import Level
from diamond_diffusers.families.sana import SanaFamily
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators

INSTRUCTION = ["a blue square for a red ring", "prompt "]
CALL = {
    "height": 32,
    "width": 32,
    "use_resolution_binning": False,
    "max_sequence_length": 8,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "complex_human_instruction": INSTRUCTION,
}


def embeds(pipeline: SanaPipeline, prompts: list[str]) -> dict[str, Any]:
    """By the instruction of the call, as the prompts are encoded; the stock default negative prompt must go."""
    encoded = pipeline.encode_prompt(prompts, max_sequence_length=8, complex_human_instruction=INSTRUCTION)
    names = ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"]
    return {"negative_prompt": None, **dict(zip(names, encoded, strict=True))}


FAMILY = TinyFamily(
    build=build_tiny_sana,
    call=CALL,
    latents_shape=LATENTS_SHAPE,
    embeds=embeds,
    apart=("timesteps",),
    guided="negative_prompt",
    variants={
        "negative_prompt": {"negative_prompt": ["a ring", "three green hearts"], "guidance_scale": 2.5},
        "no_instruction": {"complex_human_instruction": None, "attention_kwargs": {"scale": 0.5}},
        "ignored": {"eta": 0.5, "clean_caption": True},
        "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
    },
)


class TestSana(FamilyTests):
    family = FAMILY


@pytest.fixture(scope="module")
def stock() -> SanaPipeline:
    return build_tiny_sana()


def stock_images(pipeline: SanaPipeline, **call: object) -> torch.Tensor:
    return pipeline(PROMPTS, generator=generators(), output_type="pt", **{**CALL, **call}).images


def our_images(pipeline: SanaPipeline, **call: object) -> torch.Tensor:
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    return pipe(PROMPTS, generator=generators(), output_type="pt", **{**CALL, **call}).images


def test_instructions_go_before_the_prompt_or_are_left_out(stock: SanaPipeline) -> None:
    images = {
        name: our_images(stock, complex_human_instruction=instruction)
        for name, instruction in (("given", INSTRUCTION), ("none", None))
    }
    default = {name: value for name, value in CALL.items() if name != "complex_human_instruction"}
    pipe = DiamondMapPipeline.from_pipe(stock)
    images["default"] = pipe(PROMPTS, generator=generators(), output_type="pt", **default).images
    expected = stock(PROMPTS, generator=generators(), output_type="pt", **default).images
    torch.testing.assert_close(images["default"], expected, atol=1e-4, rtol=0)
    for one, other in (("given", "none"), ("none", "default"), ("default", "given")):
        assert (images[one] - images[other]).abs().max() > 1e-2


def test_custom_timesteps_need_a_scheduler_that_does_not_shift_their_levels(stock: SanaPipeline) -> None:
    timesteps = [1000.0, 700.0, 200.0]
    with pytest.raises(ValueError, match=r"timesteps are \[1000.0, .*give sigmas"):
        our_images(stock, timesteps=timesteps)
    pipeline = build_tiny_sana()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    expected = stock_images(pipeline, timesteps=timesteps)
    torch.testing.assert_close(our_images(pipeline, timesteps=timesteps), expected, atol=1e-4, rtol=0)
    assert (expected - stock_images(pipeline)).abs().max() > 1e-2


def test_networks_with_variances_and_scaled_times(stock: SanaPipeline) -> None:
    plain = stock_images(stock)
    pipeline = build_tiny_sana()
    pipeline.transformer = (
        type(stock.transformer).from_config(stock.transformer.config, out_channels=8, timestep_scale=0.01).eval()
    )
    expected = stock_images(pipeline)
    torch.testing.assert_close(our_images(pipeline), expected, atol=1e-4, rtol=0)
    assert (expected - plain).abs().max() > 1e-2


@torch.no_grad()
def test_predictions_of_half_precision_are_guided_in_float32() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sana()).to(torch.bfloat16)
    family = pipe.family
    conditions = family.encode(resolve_arguments(family, {**CALL, "prompt": PROMPTS, "guidance_scale": 4.5}, {}))
    latents = torch.randn(2, *LATENTS_SHAPE, generator=generators(1)[0]).bfloat16()
    levels = torch.full([2], 1.5, dtype=torch.float64)
    positive, negative = (rows.float() for rows in family.both_predictions(latents, levels, conditions))
    guided = family.guided_prediction(latents, levels, conditions)
    torch.testing.assert_close(guided, negative + 4.5 * (positive - negative), atol=1e-6, rtol=0)


def test_denoiser_satisfies_the_velocity_identity(stock: SanaPipeline) -> None:
    family = DiamondMapPipeline.from_pipe(stock).family
    arguments = resolve_arguments(family, {**CALL, "prompt": PROMPTS, "guidance_scale": 3.0}, {})
    conditions = family.encode(arguments)
    latents = torch.randn(2, *LATENTS_SHAPE, generator=torch.Generator().manual_seed(0))
    for sigma in (1.0, 0.8, 0.3, 0.05):
        level = family.path.noise_to_signal(sigma)
        denoised = family.denoise(family.path.to_bounded(latents, sigma), level, conditions)
        with torch.no_grad():
            guided, unguided = (
                stock.transformer(latents, timestep=torch.full([2], 1000 * sigma), return_dict=False, **features)[0]
                for features in (conditions.features, conditions.negative_features)
            )
        velocity = unguided + 3.0 * (guided - unguided)
        torch.testing.assert_close(denoised, latents - sigma * velocity, atol=1e-5, rtol=0)


def test_dpm_solver_levels_and_first_order_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build_tiny_sana()
    pipeline.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=1
    )
    family = DiamondMapPipeline.from_pipe(pipeline).family
    arguments = resolve_arguments(family, {**CALL, "prompt": PROMPTS}, {})
    levels = family.levels(arguments, family.encode(arguments))
    base = torch.linspace(0.999, 0, 4, dtype=torch.float64)
    shifted = 3 * base / (1 + 2 * base)
    assert levels == pytest.approx((shifted / (1 - shifted)).tolist(), rel=1e-3)
    # This scheduler asks the network at times cut down to whole thousandths; its first-order step is Euler's.
    whole: Callable[[SanaFamily, Level], torch.Tensor] = lambda self, level: (1000 * self.path.time(level)).floor()  # noqa: E731
    monkeypatch.setattr(SanaFamily, "timestep", whole)
    torch.testing.assert_close(our_images(pipeline), stock_images(pipeline), atol=1e-4, rtol=0)


@pytest.mark.parametrize("build", [build_tiny_sana, build_tiny_sana_sprint])
def test_images_of_one_prompt_do_not_depend_on_the_others_length(build: Callable) -> None:
    pipe = DiamondMapPipeline.from_pipe(build())
    steps = {"num_inference_steps": 2, "num_images_per_prompt": 2, "output_type": "pt"}
    prompts = ["a ring", "three green hearts left of a blue square"]
    both = pipe(prompts, generator=generators(4), **{**CALL, **steps}).images
    for index, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=generators(2, first=2 * index), **{**CALL, **steps}).images
        torch.testing.assert_close(both[2 * index : 2 * index + 2], alone, atol=1e-4, rtol=0)
