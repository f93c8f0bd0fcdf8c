"""The Stable Diffusion family reads the stock pipelines as they read themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler, StableDiffusionPipeline, TCDScheduler
from torch import Tensor

from benchmarks.counting import counted
from benchmarks.zoo.stable_diffusion import (
    IMAGE_EMBED_SIZE,
    LATENTS_SHAPE,
    SCHEDULE,
    add_ip_adapter,
    add_safety_checker,
    build_tiny_latent_consistency,
    build_tiny_stable_diffusion,
    kohya_lora,
    lora,
    zero_terminal_snr,
)
from diamond_diffusers import (
    SMC,
    AncestralTransition,
    DiamondMapPipeline,
    GlassPosterior,
    GlassTransition,
    Guidance,
    NoAlignment,
    RenoiseTransition,
)
from diamond_diffusers.core.model import Conditions

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, brightness, generators, tiny_preview_vae
from .stock import StockTests

CALL = {"height": 16, "width": 16, "num_inference_steps": 3, "guidance_scale": 1.0}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": ["a ring", "a red ring"]}


def prompt_embeds(pipeline: StableDiffusionPipeline, prompts: list[str]) -> dict[str, Any]:
    embeds, negative = pipeline.encode_prompt(prompts, "cpu", 1, True, negative_prompt=["a ring"] * len(prompts))
    if "negative_prompt_embeds" not in inspect.signature(pipeline.__call__).parameters:
        return {"prompt_embeds": embeds}
    return {"prompt_embeds": embeds, "negative_prompt_embeds": negative}


STABLE_DIFFUSION = TinyFamily(
    build=build_tiny_stable_diffusion,
    call=CALL,
    latents_shape=LATENTS_SHAPE,
    embeds=prompt_embeds,
    variants={
        "guided": GUIDED,
        "rescaled": {**GUIDED, "guidance_rescale": 0.7},
        "timesteps": {"timesteps": [999, 600, 100]},
        "sigmas": {"sigmas": [12.0, 3.0, 0.5, 0.0]},
        "eta": {"eta": 0.5},
        "cross_attention_kwargs": {"cross_attention_kwargs": {"scale": 0.5}},
    },
    guided="guided",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 2),
    apart=("ip_adapter_image", "ip_adapter_image_embeds", "clip_skip"),
)


TRIED = tuple({keyword for variant in STABLE_DIFFUSION.variants.values() for keyword in variant})


class TestEpsilon(FamilyTests):
    """Stable Diffusion 1.5, with latents of the form `z + kappa eps`."""

    family = STABLE_DIFFUSION


class TestVelocity(StockTests):
    """Stable Diffusion 2.1 fine-tuned to start from pure noise."""

    family = replace(
        STABLE_DIFFUSION,
        build=lambda: zero_terminal_snr(build_tiny_stable_diffusion("v_prediction")),
        call={**CALL, "num_inference_steps": 4},
        variants={"guided": GUIDED, "rescaled": {**GUIDED, "guidance_rescale": 0.7}, "eta": {"eta": 0.7}},
        apart=(*STABLE_DIFFUSION.apart, *TRIED),
    )


class TestLatentConsistency(StockTests):
    """A few-step model with an embedding of the guidance scale, in its own pipeline."""

    family = TinyFamily(
        build=build_tiny_latent_consistency,
        call=CALL,
        latents_shape=LATENTS_SHAPE,
        embeds=prompt_embeds,
        variants={
            "guidance_scale": {"guidance_scale": 8.5},
            "original_inference_steps": {"original_inference_steps": 20},
            "timesteps": {"timesteps": [999, 579, 99]},
            "cross_attention_kwargs": {"cross_attention_kwargs": {"scale": 0.5}},
        },
        apart=STABLE_DIFFUSION.apart,
    )

    def test_callbacks_replace_latents(self, pipe: DiamondMapPipeline) -> None:
        """The stock pipeline returns its last prediction, of which the callback sees nothing."""

        def halve_first(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            return {"latents": tensors["latents"] / (2 if index == 0 else 1)}

        halved = self.assert_stock(pipe, callback_on_step_end=halve_first)
        assert (halved - self.images(pipe)).abs().max() > 1e-3

    def test_it_is_a_flow_map(self, pipe: DiamondMapPipeline) -> None:
        assert pipe.family.has_flow_map
        assert not pipe.family.has_denoiser
        with pytest.raises(ValueError, match="flow map without"):
            pipe(PROMPTS, reward=brightness, alignment=SMC(posterior=GlassPosterior()), **CALL)
        out = pipe(PROMPTS, reward=brightness, alignment=SMC(num_particles=2), **CALL)
        assert out.cost.network_evaluations == 2 * 2 * 3


class TestImagePrompt(StockTests):
    """With an IP-Adapter loaded, which then wants an image at every call."""

    family = replace(
        STABLE_DIFFUSION,
        build=lambda: add_ip_adapter(build_tiny_stable_diffusion()),
        call={**CALL, "ip_adapter_image": PIL.Image.linear_gradient("L").convert("RGB")},
        variants={"guided": GUIDED},
        apart=(*STABLE_DIFFUSION.apart, *TRIED),
    )

    def test_embeds_of_images_stand_for_them(self, pipe: DiamondMapPipeline) -> None:
        embeds = torch.randn(2, 1, IMAGE_EMBED_SIZE, generator=generators(1)[0])
        call = {**GUIDED, "ip_adapter_image": None}
        images = self.assert_stock(pipe, **call, ip_adapter_image_embeds=[embeds])
        others = self.images(pipe.pipeline, **call, ip_adapter_image_embeds=[embeds.flip(0)])
        assert (images - others).abs().mean() > 1e-3

    def test_an_image_without_an_adapter_is_refused(self) -> None:
        pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
        with pytest.raises(ValueError, match="ip_adapter_image is given"):
            pipe(PROMPTS, **self.family.call)


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())


def conditions(pipe: DiamondMapPipeline, **given: Any) -> Conditions:
    parameters = inspect.signature(type(pipe.pipeline).__call__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return pipe.family.encode({**defaults, **CALL, "prompt": PROMPTS, **given})


def latents(seed: int = 7) -> Tensor:
    return torch.randn(2, *LATENTS_SHAPE, generator=torch.Generator().manual_seed(seed))


def test_one_negative_text_serves_all_prompts(pipe: DiamondMapPipeline) -> None:
    call = {**CALL, "guidance_scale": 3.0, "output_type": "pt"}
    one = pipe(PROMPTS, negative_prompt="a ring", generator=generators(), **call).images
    each = pipe(PROMPTS, negative_prompt=["a ring"] * 2, generator=generators(), **call).images
    assert torch.equal(one, each)


@pytest.mark.parametrize("build", [build_tiny_stable_diffusion, build_tiny_latent_consistency])
def test_clip_skip_leaves_out_layers_of_the_text_encoder(build: Callable[[], Any]) -> None:
    """The stock pipelines fail at it with transformers 5, so they are given the features that it stands for."""
    pipe = DiamondMapPipeline.from_pipe(build())
    encoder = pipe.text_encoder
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embeds = encoder.final_layer_norm(encoder(tokens, output_hidden_states=True).hidden_states[-2])
    # By hooks of transformers' own, which whoever first asks for hidden states leaves for good.
    hooks = [len(module._forward_hooks) for module in encoder.modules()]
    call = {**CALL, "guidance_scale": 2.0, "output_type": "pt"}
    stock = pipe.pipeline(prompt_embeds=embeds, generator=generators(), **call).images
    skipped = pipe(PROMPTS, clip_skip=1, generator=generators(), **call).images
    torch.testing.assert_close(skipped, stock, atol=1e-4, rtol=0)
    assert (skipped - pipe(PROMPTS, generator=generators(), **call).images).abs().mean() > 1e-3
    assert not hasattr(encoder, "text_model")
    assert [len(module._forward_hooks) for module in encoder.modules()] == hooks


def test_size_defaults_to_that_of_the_network(pipe: DiamondMapPipeline) -> None:
    call = {**CALL, "height": None, "output_type": "pt"}
    assert pipe(PROMPTS, **call).images.shape == pipe.pipeline(PROMPTS, **call).images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"height is 20; give a multiple of 8 .*, such as 16 or 24"):
        pipe(PROMPTS, **{**CALL, "height": 20})


def test_guidance_evaluates_the_network_twice_and_an_embedding_once() -> None:
    for build, count in ((build_tiny_stable_diffusion, 2), (embedded_guidance, 1)):
        pipe = DiamondMapPipeline.from_pipe(build())
        with counted(pipe) as counts:
            out = pipe(PROMPTS, **{**CALL, "guidance_scale": 4.0})
        assert counts.network == out.cost.network_evaluations == count * 2 * 3


def embedded_guidance() -> StableDiffusionPipeline:
    pipeline = build_tiny_stable_diffusion(time_cond_proj_dim=16)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return pipeline


def test_a_network_that_embeds_guidance_is_few_step_in_the_ordinary_pipeline_too() -> None:
    pipe = DiamondMapPipeline.from_pipe(embedded_guidance())
    call = {**CALL, "guidance_scale": 8.5, "output_type": "pt"}
    stock = pipe.pipeline(PROMPTS, generator=generators(), **call).images
    torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
    pipe.scheduler = EulerDiscreteScheduler(**SCHEDULE)
    assert pipe.family.has_flow_map


@pytest.mark.parametrize("name", ["stabilityai/sd-turbo", "/models/SD-Turbo/"])
def test_turbo_is_known_by_name(name: str) -> None:
    pipeline = build_tiny_stable_diffusion()
    pipeline.register_to_config(_name_or_path=name)
    pipeline.scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    assert pipe.family.has_flow_map
    assert pipe.family.stochastic_transition() == RenoiseTransition()
    for steps in (1, 2):
        call = {**CALL, "num_inference_steps": steps, "guidance_scale": 0.0, "output_type": "pt"}
        stock = pipeline(PROMPTS, generator=generators(), **call).images
        torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
    pipe.few_step = False
    assert not pipe.family.has_flow_map


def test_a_base_model_gives_the_scores_of_turbo() -> None:
    turbo, base = build_tiny_stable_diffusion(), build_tiny_stable_diffusion("v_prediction")
    turbo.scheduler = EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    pipe = DiamondMapPipeline.from_pipe(turbo, few_step=True, score_model=base)
    smc = SMC(num_particles=2, posterior=GlassPosterior(num_inner_steps=2), num_valuations=4)
    with counted(pipe) as maps, counted(pipe.score_model) as scores:
        out = pipe(PROMPTS, reward=brightness, alignment=smc, **CALL)
    assert maps.network == 2 * 2 * 3
    # Guided by the base model's own default, thus twice; the start is not valued.
    assert scores.network == 2 * 2 * (3 - 1) * 2 * 2
    assert out.cost.network_evaluations == maps.network + scores.network


def test_a_few_step_lora_makes_the_map_and_the_base_is_the_denoiser() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    weights = [lora(pipe.unet, seed) for seed in (1, 2)]
    x, level, given = latents(), 3.0, conditions(pipe)
    with torch.no_grad():
        base = pipe.family.predict(x, level, given)
        pipe.load_lora_weights(weights[0], adapter_name="lcm")
        pipe.few_step = "lcm"
        assert pipe.family.has_flow_map
        mapped = pipe.family.predict(x, level, given)
        torch.testing.assert_close(pipe.family.denoise(x, level, given), base, atol=1e-5, rtol=0)
        # Another adapter belongs to both.
        pipe.load_lora_weights(weights[1], adapter_name="style")
        pipe.set_adapters(["lcm", "style"], [1.0, 0.5])
        styled = pipe.family.denoise(x, level, given)
        both = pipe.family.predict(x, level, given)
        pipe.set_adapters(["style"], [0.5])
        torch.testing.assert_close(styled, pipe.family.predict(x, level, given), atol=1e-5, rtol=0)
    for one, other in ((mapped, base), (styled, base), (both, mapped)):
        assert (one - other).abs().max() > 1e-2


def test_a_lora_for_another_model_is_refused_whatever_its_names() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    pipe.load_lora_weights(kohya_lora("down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"))
    with pytest.raises(ValueError, match="made for another model"):
        pipe.load_lora_weights(kohya_lora("down_blocks_3_attentions_0_transformer_blocks_0_attn1_to_q"))


@pytest.mark.parametrize(("scheduler", "call"), [(LCMScheduler, {}), (TCDScheduler, {}), (TCDScheduler, {"eta": 0.3})])
def test_few_step_loras_sample_as_in_the_stock_pipeline(scheduler: type, call: dict[str, Any]) -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    pipe.load_lora_weights(lora(pipe.unet, 1), adapter_name="few")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert pipe.family.has_flow_map
    assert not pipe.family.has_denoiser
    pipe.few_step = "few"
    assert pipe.family.has_denoiser
    call = {**CALL, "num_inference_steps": 4, "output_type": "pt", **call}
    stock = pipe.pipeline(PROMPTS, generator=generators(), **call).images
    torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
    smc = SMC(num_particles=2, posterior=GlassPosterior(num_inner_steps=2), num_valuations=4)
    out = pipe(PROMPTS, reward=brightness, alignment=smc, **call)
    # At each level the map, and the two evaluations of an inner flow of the base but at the start, which is not valued;
    # nothing after the last.
    assert out.cost.network_evaluations == 2 * 2 * (4 * 3 - 2)


def test_the_safety_checker_blacks_out_what_it_does_in_the_stock_pipeline() -> None:
    pipeline = build_tiny_stable_diffusion()
    call = {**CALL, "output_type": "pt"}
    plain = pipeline(PROMPTS, generator=generators(), **call).images
    checker = add_safety_checker(pipeline, threshold=0.0).safety_checker
    pixels = pipeline.feature_extractor(
        pipeline.image_processor.pt_to_numpy(plain), return_tensors="pt", do_rescale=False
    )
    embeds = checker.visual_projection(checker.vision_model(pixels.pixel_values)[1])
    similarity = torch.nn.functional.cosine_similarity(embeds[:, None], checker.concept_embeds, dim=-1).amax(1)
    checker.concept_embeds_weights.fill_(similarity.mean().item())
    stock = pipeline(PROMPTS, generator=generators(), **call)
    assert sorted(stock.nsfw_content_detected) == [False, True]
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    out = pipe(PROMPTS, generator=generators(), **call)
    assert out.nsfw_content_detected == stock.nsfw_content_detected
    torch.testing.assert_close(out.images, stock.images, atol=1e-4, rtol=0)
    assert out.images[stock.nsfw_content_detected.index(True)].abs().max() == 0
    assert pipe(PROMPTS, **{**CALL, "output_type": "latent"}).nsfw_content_detected is None


def test_images_are_differentiable_in_noisy_latents() -> None:
    """The gradient of a projection of them agrees with finite differences through network and decoder."""
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion().to(torch.float64))
    given = conditions(pipe, **GUIDED, guidance_rescale=0.5)
    x, direction = latents(1).double(), latents(2).double()
    projection = torch.randn(2, 3, 16, 16, generator=generators(1)[0])

    def projected(x: Tensor) -> Tensor:
        return (projection * pipe.family.decode(pipe.family.predict(x, 2.0, given), given)).mean()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(projected(x), x)
    with torch.no_grad():
        slope = (projected(x + 1e-5 * direction) - projected(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)
    assert slope.abs() > 1e-4


def test_eta_decides_how_particles_move() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    pipe.scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    with pytest.raises(ValueError, match=r"eta is 1\.5"):
        pipe(PROMPTS, eta=1.5, **CALL)
    call = {**CALL, "reward": brightness, "output_type": "pt"}

    def images(**options: Any) -> Tensor:
        return pipe(PROMPTS, generator=generators(), **options, **call).images

    assert torch.equal(images(eta=0.7, alignment="none"), images(alignment=NoAlignment(AncestralTransition(0.7))))
    guided = images(eta=0.7, alignment=Guidance())
    assert torch.equal(guided, images(alignment=Guidance(transition=AncestralTransition(0.7))))
    assert not torch.equal(guided, images(alignment=Guidance()))
    # Other samplers make nothing of it.
    pipe.scheduler = EulerDiscreteScheduler(**SCHEDULE)
    assert pipe.family.for_call({"eta": 0.7}).stochastic_transition() == GlassTransition()
