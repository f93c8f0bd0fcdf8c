"""SANA-Sprint is read as its stock pipeline reads itself, and takes SANA for the scores that it lacks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaSprintPipeline

from benchmarks.counting import counted
from benchmarks.zoo.sana import LATENTS_SHAPE, build_tiny_sana, build_tiny_sana_sprint
from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    GlassPosterior,
    GlassTransition,
    Guidance,
    Guide,
    NoAlignment,
    WeightedPosterior,
)
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, brightness, generators

CALL = {"height": 32, "width": 32, "use_resolution_binning": False, "max_sequence_length": 8}
INSTRUCTION = ["a blue square for a red ring", "prompt "]


def embeds(pipeline: SanaSprintPipeline, prompts: list[str]) -> dict[str, torch.Tensor]:
    """By the instruction of the call, as the prompts are encoded."""
    prompt_embeds, mask = pipeline.encode_prompt(prompts, max_sequence_length=8, complex_human_instruction=INSTRUCTION)
    return {"prompt_embeds": prompt_embeds, "prompt_attention_mask": mask}


FAMILY = TinyFamily(
    build=build_tiny_sana_sprint,
    call={**CALL, "num_inference_steps": 2, "complex_human_instruction": INSTRUCTION},
    latents_shape=LATENTS_SHAPE,
    embeds=embeds,
    apart=("timesteps",),
    variants={
        "guidance_scale": {"guidance_scale": 1.5},
        "intermediate_timesteps": {"intermediate_timesteps": 0.9},
        "one_step": {"num_inference_steps": 1, "intermediate_timesteps": None, "max_timesteps": 1.5},
        "four_steps": {"num_inference_steps": 4, "intermediate_timesteps": None},
        "no_instruction": {"complex_human_instruction": None, "attention_kwargs": {"scale": 0.5}},
        "ignored": {"eta": 0.5, "clean_caption": True},
    },
)


class TestSanaSprint(FamilyTests):
    family = FAMILY

    def test_callbacks_replace_latents(self, pipe: DiamondMapPipeline) -> None:
        """The stock pipeline returns its last prediction, of which the callback sees nothing."""

        def halve_first(pipeline: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict:
            return {"latents": tensors["latents"] / (2 if index == 0 else 1)}

        halved = self.assert_stock(pipe, callback_on_step_end=halve_first)
        assert (halved - self.images(pipe)).abs().max() > 1e-2


@pytest.fixture(scope="module")
def stock() -> SanaSprintPipeline:
    return build_tiny_sana_sprint()


def stock_images(pipeline: SanaSprintPipeline, **call: object) -> torch.Tensor:
    return pipeline(PROMPTS, generator=generators(), output_type="pt", **{**FAMILY.call, **call}).images


def our_images(pipeline: SanaSprintPipeline, **call: object) -> torch.Tensor:
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    return pipe(PROMPTS, generator=generators(), output_type="pt", **{**FAMILY.call, **call}).images


@pytest.mark.parametrize("variant", ["guidance_scale", "intermediate_timesteps", "one_step", "four_steps"])
def test_options_have_an_effect(stock: SanaSprintPipeline, variant: str) -> None:
    assert (our_images(stock, **FAMILY.variants[variant]) - our_images(stock)).abs().max() > 1e-2


def test_custom_timesteps_are_those_of_the_scheduler(
    stock: SanaSprintPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last time is not 0: the stock pipeline still returns the predicted sample.
    call = {
        "timesteps": [1.5, 1.0, 0.4, 0.2],
        "num_inference_steps": 3,
        "max_timesteps": None,
        "intermediate_timesteps": None,
    }
    ours = our_images(stock, **call)
    # The stock pipeline leaves out the number of steps, without which its scheduler raises.
    monkeypatch.setattr(stock.scheduler, "set_timesteps", partial(stock.scheduler.set_timesteps, 3), raising=False)
    torch.testing.assert_close(ours, stock_images(stock, **call), atol=1e-4, rtol=0)


def test_prediction_is_the_schedulers(stock: SanaSprintPipeline) -> None:
    family = DiamondMapPipeline.from_pipe(stock).family
    conditions = family.encode(resolve_arguments(family, {**FAMILY.call, "prompt": PROMPTS}, {}))
    latents = 0.5 * torch.randn(2, *LATENTS_SHAPE, generator=torch.Generator().manual_seed(0))
    for time in (1.5708, 1.5, 1.3, 0.6, 0.05):
        level = math.inf if time > math.pi / 2 else math.tan(time)
        predicted = family.predict(family.from_stock(latents, level), level, conditions)
        with torch.no_grad():
            expected = scm_prediction(stock, latents, time, conditions.features)
        torch.testing.assert_close(predicted, expected / 0.5, atol=2e-5, rtol=0)


def scm_prediction(
    stock: SanaSprintPipeline, latents: torch.Tensor, time: float, features: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The scheduler's predicted sample, with the network around which TrigFlow is spelt out (arXiv 2503.09641)."""
    s = math.sin(time) / (math.sin(time) + math.cos(time))
    q = math.hypot(s, 1 - s)
    x = latents / 0.5 * q
    guidance = torch.full([2], 4.5 * stock.transformer.config.guidance_embeds_scale)
    velocity = stock.transformer(x, timestep=torch.full([2], s), guidance=guidance, return_dict=False, **features)[0]
    trigflow = ((1 - 2 * s) * x + (1 - 2 * s + 2 * s**2) * velocity) / q
    stock.scheduler.set_timesteps(1, timesteps=[time, 0.0], max_timesteps=None, intermediate_timesteps=None)
    return stock.scheduler.step(0.5 * trigflow, stock.scheduler.timesteps[0], latents).pred_original_sample


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({}, [math.inf, math.tan(1.3), 0]),
        ({"num_inference_steps": 1, "intermediate_timesteps": None, "max_timesteps": 1.5}, [math.tan(1.5), 0]),
        ({"num_inference_steps": 3, "intermediate_timesteps": None}, [math.inf, math.tan(1.0472), math.tan(0.5236), 0]),
    ],
)
def test_levels_are_tangents_of_the_stock_times(stock: SanaSprintPipeline, options: dict, levels: list[float]) -> None:
    family = DiamondMapPipeline.from_pipe(stock).family
    arguments = resolve_arguments(family, {**FAMILY.call, **options, "prompt": PROMPTS}, {})
    # The scheduler keeps its times in float32.
    assert family.levels(arguments, family.encode(arguments)) == pytest.approx(levels, rel=1e-5)
    assert family.timestep(math.tan(1.3)).item() == pytest.approx(1.3)


def test_it_is_a_flow_map_without_a_denoiser(stock: SanaSprintPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(stock)
    assert pipe.family.has_flow_map
    assert not pipe.family.has_denoiser
    for needy in (SMC(posterior=GlassPosterior(num_inner_steps=2)), SMC(transition=GlassTransition())):
        with pytest.raises(ValueError, match=r"sana_sprint model is a few-step flow map.*score_model"):
            pipe(PROMPTS, reward=brightness, alignment=needy, **FAMILY.call)


@pytest.fixture(scope="module")
def sana() -> SanaPipeline:
    pipeline = build_tiny_sana()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    return pipeline


def test_sana_gives_the_scores_that_it_lacks(stock: SanaSprintPipeline, sana: SanaPipeline) -> None:
    """A GLASS transition needs the posterior mean alone, so with SANA's it draws SANA's samples."""
    pipe = DiamondMapPipeline.from_pipe(
        stock, score_model=DiamondMapPipeline(sana, {**CALL, "complex_human_instruction": INSTRUCTION})
    )
    call = {**FAMILY.call, "output_type": "latent", "alignment": NoAlignment(transition=GlassTransition(3))}
    latents = pipe(PROMPTS, generator=generators(), **call).images
    kappa = math.tan(1.3)
    expected = DiamondMapPipeline.from_pipe(sana)(
        PROMPTS, generator=generators(), sigmas=[1.0, kappa / (1 + kappa)], **call
    ).images
    # Times are in float32: 1.3 is met to 1e-7, its tangent to 1e-6.
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


WITH_SCORES = {
    "glass": SMC(num_particles=3, posterior=GlassPosterior(num_inner_steps=2, num_samples=2)),
    "weighted": SMC(num_particles=2, posterior=WeightedPosterior(num_samples=2)),
    "weighted_gradient": Guidance(guide=Guide("pathwise"), posterior=WeightedPosterior(num_samples=2)),
}


@pytest.mark.parametrize("name", WITH_SCORES)
def test_cost_counts_map_and_scores(stock: SanaSprintPipeline, sana: SanaPipeline, name: str) -> None:
    pipe = DiamondMapPipeline.from_pipe(stock, score_model=sana)
    with counted(pipe) as maps, counted(pipe.score_model) as scores:
        out = pipe(PROMPTS, reward=brightness, alignment=WITH_SCORES[name], generator=generators(), **FAMILY.call)
    assert maps.network > 0
    # SANA is asked under classifier-free guidance.
    assert scores.network % 2 == 0
    assert scores.network > 0
    assert out.cost.network_evaluations == maps.network + scores.network
    assert out.rewards.isfinite().all()


def test_weights_without_scores_are_those_of_the_reward(stock: SanaSprintPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(stock)
    call = {**FAMILY.call, "reward": brightness, "reward_scale": 20.0}
    with pytest.raises(ValueError, match="score_model"):
        pipe(PROMPTS, alignment=SMC(posterior=WeightedPosterior(weights="consistent")), **call)
    posterior = WeightedPosterior(num_samples=4, weights="reward_softmax")
    alignment = Guidance(guide=Guide("tilted_mean"), posterior=posterior)
    prompts = ["a red circle"] * 4
    # From the same draws, all but untilted.
    plain = pipe(prompts, generator=generators(4), alignment=alignment, **{**call, "reward_scale": 1e-6}).rewards
    assert pipe(prompts, generator=generators(4), alignment=alignment, **call).rewards.mean() > plain.mean()


def test_the_time_between_two_steps_is_a_default_of_two_alone(stock: SanaSprintPipeline) -> None:
    pipe = DiamondMapPipeline.from_pipe(stock)
    four, two = (pipe.prepare("a ring", **CALL, num_inference_steps=steps) for steps in (4, 2))
    with four.active():
        assert len(four.levels()) == 5
    with two.active():
        assert two.levels()[1] == pytest.approx(math.tan(1.3))
        # As a budget asks for them.
        assert two.levels(4) == four.levels() and two.levels(1) == [math.inf, 0]
    with pytest.raises(ValueError, match=r"intermediate_timesteps is 1\.3, .* num_inference_steps is 4; give"):
        pipe.prepare("a ring", **CALL, num_inference_steps=4, intermediate_timesteps=1.3)
