"""The FLUX backbone reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

import inspect

import pytest
import torch
from diffusers import FluxPipeline

from diamond_diffusers import DiamondMapPipeline, GlassTransition, NoAlignment

PROMPTS = ["a red circle", "two blue stars"]
CALL = {"height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 12, "output_type": "pt"}


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize(
    "guidance",
    [{}, {"guidance_scale": 1.5}, {"true_cfg_scale": 2.5, "negative_prompt": ["a ring", "a ring"]}],
    ids=["default", "guidance_scale", "true_cfg"],
)
def test_without_alignment_the_stock_image_is_reproduced(tiny_flux: FluxPipeline, guidance: dict) -> None:
    stock = tiny_flux(PROMPTS, generator=generators(), **CALL, **guidance).images
    ours = DiamondMapPipeline.from_pipe(tiny_flux)(
        PROMPTS, generator=generators(), alignment="none", **CALL, **guidance
    ).images
    # Float32 rounding over four steps of a network with unit-sized outputs.
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=0)
    assert stock.std() > 0.05


def test_one_generator_and_given_latents_reproduce_the_stock_image(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    one = torch.Generator().manual_seed(3)
    stock = tiny_flux(PROMPTS, generator=one, **CALL).images
    one.manual_seed(3)
    torch.testing.assert_close(pipe(PROMPTS, generator=one, **CALL).images, stock, atol=1e-4, rtol=0)
    latents = torch.randn(2, 4, 16, generator=one)
    stock = tiny_flux(PROMPTS, latents=latents, **CALL).images
    torch.testing.assert_close(pipe(PROMPTS, latents=latents, **CALL).images, stock, atol=1e-4, rtol=0)


def test_custom_sigmas_and_latent_output_are_those_of_the_stock_pipeline(tiny_flux: FluxPipeline) -> None:
    call = {**CALL, "sigmas": [1.0, 0.7, 0.2], "num_inference_steps": 3, "output_type": "latent"}
    stock = tiny_flux(PROMPTS, generator=generators(), **call).images
    ours = DiamondMapPipeline.from_pipe(tiny_flux)(PROMPTS, generator=generators(), **call)
    torch.testing.assert_close(ours.images, stock, atol=1e-4, rtol=0)
    assert ours.cost.decodes == 0


def test_prompt_embeds_stand_for_their_prompts(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    embeds, pooled, _ = tiny_flux.encode_prompt(prompt=PROMPTS, prompt_2=None, max_sequence_length=12)
    by_prompt = pipe(PROMPTS, generator=generators(), **CALL).images
    by_embeds = pipe(prompt_embeds=embeds, pooled_prompt_embeds=pooled, generator=generators(), **CALL).images
    torch.testing.assert_close(by_embeds, by_prompt, atol=1e-5, rtol=0)


def test_denoiser_satisfies_the_velocity_identity(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    arguments = {name: p.default for name, p in inspect.signature(FluxPipeline.__call__).parameters.items()}
    conditions = pipe.backbone.encode({**arguments, **CALL, "prompt": PROMPTS})
    z, eps = torch.randn(2, 4, 16), torch.randn(2, 4, 16)
    for sigma in (1.0, 0.8, 0.3, 0.05):
        x = (1 - sigma) * z + sigma * eps
        level = pipe.backbone.path.noise_to_signal(sigma)
        denoised = pipe.backbone.denoise(pipe.backbone.path.to_bounded(x, sigma), level, conditions)
        with torch.no_grad():
            velocity = tiny_flux.transformer(
                hidden_states=x,
                timestep=torch.full((2,), sigma),
                guidance=torch.full((2,), 3.5) if tiny_flux.transformer.config.guidance_embeds else None,
                img_ids=conditions.shared["img_ids"],
                txt_ids=conditions.shared["txt_ids"],
                **conditions.features,
            ).sample
        torch.testing.assert_close(denoised, x - sigma * velocity, atol=1e-5, rtol=0)


def test_levels_run_from_pure_noise_to_clean(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    arguments = {name: p.default for name, p in inspect.signature(FluxPipeline.__call__).parameters.items()}
    arguments.update(CALL, prompt=PROMPTS)
    levels = pipe.backbone.levels(arguments, pipe.backbone.encode(arguments))
    assert levels[0] == float("inf")
    assert levels[-1] == 0
    assert levels == sorted(levels, reverse=True)
    assert len(levels) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32(tiny_flux: FluxPipeline, dtype: torch.dtype) -> None:
    latents = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    full = pipe(PROMPTS, latents=latents, **CALL).images
    half = pipe.to(dtype)(PROMPTS, latents=latents, **CALL).images.float()
    assert half.isfinite().all()
    assert (half - full).abs().mean() < 3 / 255


def test_image_i_depends_on_generator_i_alone(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    alignment = NoAlignment(transition=GlassTransition(num_inner_steps=2), num_particles=3)
    both = pipe(PROMPTS, generator=generators(), alignment=alignment, final_selection="all", **CALL).images
    for i in range(2):
        alone = pipe(PROMPTS[i], generator=generators()[i], alignment=alignment, final_selection="all", **CALL).images
        # Batched kernels round differently.
        torch.testing.assert_close(both[3 * i : 3 * i + 3], alone, atol=1e-4, rtol=0)
    chunked = pipe(
        PROMPTS, generator=generators(), alignment=alignment, final_selection="all", particle_batch_size=4, **CALL
    ).images
    torch.testing.assert_close(chunked, both, atol=1e-4, rtol=0)


def test_network_evaluations_are_counted_as_they_happen(tiny_flux: FluxPipeline) -> None:
    rows: list[int] = []
    hook = tiny_flux.transformer.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    alignment = NoAlignment(transition=GlassTransition(num_inner_steps=3), num_particles=2)
    out = pipe(PROMPTS, alignment=alignment, true_cfg_scale=2.0, negative_prompt="a ring", **CALL)
    hook.remove()
    assert out.cost.network_evaluations == sum(rows) == 2 * 2 * 4 * 3 * 2
    assert out.cost.decodes == 2
    assert out.cost.backward_passes == out.cost.reward_calls == 0


def test_every_stock_keyword_works_or_is_refused_by_name(tiny_flux: FluxPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(tiny_flux)
    embeds, pooled, _ = tiny_flux.encode_prompt(prompt=["a ring"], prompt_2=None, max_sequence_length=12)
    samples = {
        "prompt_2": "a ring",
        "negative_prompt": "a ring",
        "negative_prompt_2": "a ring",
        "true_cfg_scale": 2.0,
        "sigmas": [1.0, 0.75, 0.5, 0.25],
        "guidance_scale": 2.0,
        "num_images_per_prompt": 2,
        "generator": torch.Generator().manual_seed(0),
        "latents": torch.randn(1, 4, 16),
        "negative_prompt_embeds": embeds,
        "negative_pooled_prompt_embeds": pooled,
        "return_dict": False,
        "joint_attention_kwargs": {},
        "callback_on_step_end": lambda pipeline, step, timestep, tensors: {},
        "callback_on_step_end_tensor_inputs": ["latents"],
    }
    tried = {"self", "prompt", "prompt_embeds", "pooled_prompt_embeds", *CALL, *samples}
    for name in inspect.signature(FluxPipeline.__call__).parameters:
        if name in pipe.backbone.refused_arguments:
            with pytest.raises(TypeError, match=name):
                pipe("a red circle", **CALL, **{name: object()})
            continue
        assert name in tried, f"{name} is neither supported nor refused"
    for name, value in samples.items():
        extra = {"negative_prompt_embeds": embeds, "negative_pooled_prompt_embeds": pooled}
        call = {**CALL, name: value, **(extra if name.startswith("negative_p") and "embeds" in name else {})}
        pipe("a red circle", **call)
