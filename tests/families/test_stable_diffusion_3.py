"""The SD3 family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusion3Pipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from benchmarks.zoo.stable_diffusion_3 import add_tiny_ip_adapter, build_tiny_stable_diffusion_3
from diamond_diffusers import DiamondMapPipeline, GlassTransition, NoAlignment
from diamond_diffusers.core.levels import RectifiedFlowPath
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators, tiny_preview_vae
from .stock import StockTests

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "max_sequence_length": 12, "guidance_scale": 1.0}
GUIDED = {"guidance_scale": 4.0, "negative_prompt": ["a ring", "a cross"]}
SKIPPING = {
    **GUIDED,
    "num_inference_steps": 4,
    "skip_guidance_layers": [1],
    "skip_layer_guidance_scale": 2.5,
    "skip_layer_guidance_start": 0.01,
    "skip_layer_guidance_stop": 0.6,
}
VARIANTS = {
    "guided": GUIDED,
    "negative_prompts": {**GUIDED, "negative_prompt_2": "a blue star", "negative_prompt_3": "two rings"},
    "prompts": {"prompt_2": ["a ring", "a star"], "prompt_3": ["a blue ring", "a cross"], "clip_skip": 1},
    "skip_layers": SKIPPING,
    "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
    "mu": {"mu": 0.4},
    "attention_options": {"joint_attention_kwargs": {"scale": 0.5}},
}

IMAGE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
IMAGE_EMBEDS = torch.randn(2, 4, 24, generator=generators(1)[0])
IMAGE_PROMPTS = {
    "image": {"ip_adapter_image": IMAGE},
    "guided_image": {**GUIDED, "ip_adapter_image": IMAGE},
    "image_embeds": {"ip_adapter_image_embeds": IMAGE_EMBEDS[:1]},
    "guided_image_embeds": {**GUIDED, "ip_adapter_image_embeds": IMAGE_EMBEDS},
}


def prompt_embeds(pipeline: StableDiffusion3Pipeline, prompts: list[str]) -> dict[str, Tensor]:
    negative_prompts = GUIDED["negative_prompt"][: len(prompts)]
    embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(
        prompts, None, None, negative_prompt=negative_prompts, max_sequence_length=12
    )
    return {
        "prompt_embeds": embeds,
        "negative_prompt_embeds": negative,
        "pooled_prompt_embeds": pooled,
        "negative_pooled_prompt_embeds": negative_pooled,
    }


SD35 = TinyFamily(
    build=build_tiny_stable_diffusion_3,
    call=CALL,
    latents_shape=(4, 4, 4),
    embeds=prompt_embeds,
    variants=VARIANTS,
    guided="guided",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 4),
    # They need an adapter: `TestStableDiffusion3` has one.
    apart=("ip_adapter_image", "ip_adapter_image_embeds"),
)


class TestStableDiffusion35(FamilyTests):
    family = SD35


def build_with_image_prompts() -> StableDiffusion3Pipeline:
    pipeline = build_tiny_stable_diffusion_3("3", dynamic_shifting=True)
    add_tiny_ip_adapter(pipeline)
    return pipeline


class TestStableDiffusion3(StockTests):
    """Without key normalisation and dual attention, but with dynamic shifting and an IP-Adapter."""

    family = replace(
        SD35,
        build=build_with_image_prompts,
        variants={"guided": GUIDED, **IMAGE_PROMPTS},
        apart=tuple({keyword for variant in VARIANTS.values() for keyword in variant}),
    )


def encode(pipe: DiamondMapPipeline, **call: object) -> Conditions:
    return pipe.family.encode(resolve_arguments(pipe.family, {**CALL, "prompt": PROMPTS, **call}, {}))


def test_embeds_serve_several_images_each() -> None:
    stock = build_tiny_stable_diffusion_3()
    call = {**CALL, "guidance_scale": 4.0, "output_type": "pt", "num_images_per_prompt": 2}
    pipe = DiamondMapPipeline.from_pipe(stock)
    by_prompt = pipe(PROMPTS, generator=generators(4), negative_prompt=GUIDED["negative_prompt"], **call).images
    by_embeds = pipe(generator=generators(4), **prompt_embeds(stock, PROMPTS), **call).images
    torch.testing.assert_close(by_embeds, by_prompt, atol=1e-5, rtol=0)


def test_prediction_is_the_velocity_under_guidance_at_every_level() -> None:
    stock = build_tiny_stable_diffusion_3()
    pipe, path = DiamondMapPipeline.from_pipe(stock), RectifiedFlowPath()
    conditions = encode(pipe, **GUIDED)
    embeds = prompt_embeds(stock, PROMPTS)
    x = torch.randn(2, 4, 4, 4, generator=generators(1)[0])

    @torch.no_grad()
    def velocity(time: float, prefix: str) -> Tensor:
        return stock.transformer(
            hidden_states=x,
            timestep=torch.full((2,), 1000 * time),
            encoder_hidden_states=embeds[f"{prefix}prompt_embeds"],
            pooled_projections=embeds[f"{prefix}pooled_prompt_embeds"],
        ).sample

    for time in (1.0, 0.77, 0.3, 0.02):
        predicted = pipe.family.predict(path.to_bounded(x, time), path.noise_to_signal(time), conditions)
        guided = 4 * velocity(time, "") - 3 * velocity(time, "negative_")
        torch.testing.assert_close(predicted, x - time * guided, atol=2e-5, rtol=0)


def test_skip_layers_cost_a_third_evaluation_at_the_levels_of_their_steps() -> None:
    stock = build_tiny_stable_diffusion_3()
    pipe = DiamondMapPipeline.from_pipe(stock)
    rows: list[int] = []
    hook = stock.transformer.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    out = pipe(PROMPTS, **CALL | SKIPPING)
    # Steps 1 and 2 of 4 lie between 0.01 and 0.6 of the run.
    assert out.cost.network_evaluations == sum(rows) == 2 * (2 + 3 + 3 + 2)
    rows.clear()
    # The inner levels of a transition lie between those of its step and of the next.
    alignment = NoAlignment(transition=GlassTransition(num_inner_steps=3))
    out = pipe(PROMPTS, alignment=alignment, **CALL | SKIPPING)
    assert out.cost.network_evaluations == sum(rows) == 2 * 3 * (2 + 3 + 3 + 2)
    hook.remove()
    arguments = resolve_arguments(pipe.family, {**CALL, **SKIPPING, "prompt": PROMPTS}, {})
    levels = pipe.family.levels(arguments, Conditions({}))
    conditions = encode(pipe, **SKIPPING)
    costs = {level: pipe.family.evaluations_per_row(level, conditions) for level in levels}
    assert list(costs.values()) == [2, 3, 3, 2, 2]


def test_skip_layers_without_a_step_or_without_guidance_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion_3())
    conditions = encode(pipe, **SKIPPING | {"skip_layer_guidance_stop": 0.0})
    assert pipe.family.evaluations_per_row(float("inf"), conditions) == 2
    assert not caplog.records
    conditions = encode(pipe, skip_guidance_layers=[1])
    assert "skip_guidance_layers" in caplog.text
    assert pipe.family.evaluations_per_row(float("inf"), conditions) == 1


def test_rows_at_different_levels_are_guided_each_by_its_own() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion_3())
    conditions = encode(pipe, **SKIPPING)
    low, high = conditions.shared["skip_layer_guidance_levels"]
    levels, x = torch.tensor([high, low], dtype=torch.float64), torch.randn(2, 4, 4, 4, generator=generators(1)[0])
    both = pipe.family.predict(x, levels, conditions)
    for i in range(2):
        row = torch.tensor([i])
        alone = pipe.family.predict(x[row], float(levels[i]), conditions.rows(row))
        # Rounding of values up to 7 under two guidances; skipping in the wrong row would differ by 0.01 or more.
        torch.testing.assert_close(both[row], alone, atol=1e-4, rtol=0)


def test_image_prompts_have_an_effect_unless_their_scale_is_zero() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_with_image_prompts())

    def image(**call: object) -> Tensor:
        return pipe("a ring", generator=generators(1), output_type="pt", **CALL, **call).images

    plain = image()
    assert (image(ip_adapter_image=IMAGE) - plain).abs().max() > 1e-3
    pipe.set_ip_adapter_scale(0.0)
    assert torch.equal(image(ip_adapter_image=IMAGE), plain)


def test_image_prompt_without_adapter_is_refused() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion_3())
    with pytest.raises(ValueError, match="load_ip_adapter"):
        pipe(PROMPTS, ip_adapter_image=PIL.Image.new("RGB", (16, 16)), **CALL)


def test_dynamic_shift_of_a_scheduler_that_declares_no_bounds() -> None:
    """SD3's pipeline has another highest shift than FLUX's."""
    stock = build_tiny_stable_diffusion_3()
    options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_dynamic_shifting": True}
    stock.scheduler = DPMSolverMultistepScheduler(**options, time_shift_type="exponential")
    pipe = DiamondMapPipeline.from_pipe(stock)
    # At 1024 pixels and more the highest shift counts.
    arguments = {"num_inference_steps": 3, "sigmas": None, "mu": None}
    pipe.family.levels(arguments, Conditions({}, shared={"height": 1024, "width": 1024}))
    ours, tokens = stock.scheduler.sigmas, (1024 // 4 // 2) ** 2
    stock.scheduler.set_timesteps(3, mu=calculate_shift(tokens, max_shift=1.16))
    torch.testing.assert_close(ours, stock.scheduler.sigmas, atol=1e-6, rtol=0)
