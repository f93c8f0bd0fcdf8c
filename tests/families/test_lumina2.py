"""The Lumina 2 family reads the stock pipeline as the stock pipeline reads itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.counting import counted
from benchmarks.zoo.lumina2 import build_tiny_lumina2
from diamond_diffusers import DiamondMapPipeline, GlassTransition, NoAlignment
from diamond_diffusers.core.levels import RectifiedFlowPath
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.pipelines.arguments import resolve_arguments

from .common import FamilyTests
from .family import PROMPTS, TinyFamily, generators, tiny_preview_vae

# The system prompt has 24 words, and the text follows it.
CALL = {"height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 36, "guidance_scale": 1.0}
GUIDED = {"guidance_scale": 4.0, "negative_prompt": ["a ring", "a small red cross"]}
TRUNCATED = {**GUIDED, "num_inference_steps": 4, "cfg_trunc_ratio": 0.5}


def prompt_embeds(pipeline: Lumina2Pipeline, prompts: list[str]) -> dict[str, Tensor]:
    names = "prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"
    negative_prompts = GUIDED["negative_prompt"][: len(prompts)]
    encoded = pipeline.encode_prompt(prompts, negative_prompt=negative_prompts, max_sequence_length=36)
    return dict(zip(names, encoded, strict=True))


LUMINA2 = TinyFamily(
    build=build_tiny_lumina2,
    call=CALL,
    latents_shape=(4, 4, 4),
    embeds=prompt_embeds,
    variants={
        "guided": GUIDED,
        "default_negative_prompt": {"guidance_scale": 3.0},
        "not_normalised": {**GUIDED, "cfg_normalization": False},
        "truncated": TRUNCATED,
        "never_guided": {**GUIDED, "cfg_trunc_ratio": 0.0},
        "system_prompt": {"system_prompt": "a blue"},
        "sigmas": {"sigmas": [1.0, 0.7, 0.2]},
        "attention_options": {"attention_kwargs": {"scale": 0.5}},
    },
    guided="guided",
    preview_vae=lambda pipeline: tiny_preview_vae(4, 8),
)


class TestLumina2(FamilyTests):
    family = LUMINA2

    @pytest.mark.slow
    def test_a_compiled_network_is_compiled_once(self) -> None:
        """The stock network reads the lengths of its masks, which breaks its graph."""
        pipe = self.fresh()
        expected = self.images(pipe)
        torch._dynamo.reset()
        counters.clear()
        pipe.family.network_module.compile(backend="eager")
        try:
            self.assert_same(self.images(pipe), expected)
            graphs = counters["stats"]["unique_graphs"]
            self.images(pipe)
            assert counters["stats"]["unique_graphs"] == graphs > 0
        finally:
            torch._dynamo.reset()


@pytest.fixture(scope="module")
def pipe() -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(build_tiny_lumina2())


def encode(pipe: DiamondMapPipeline, **call: Any) -> Conditions:
    return pipe.family.encode(resolve_arguments(pipe.family, {**CALL, "prompt": PROMPTS, **call}, {}))


@torch.no_grad()
def test_prediction_is_the_guided_velocity_in_reversed_time(pipe: DiamondMapPipeline) -> None:
    path = RectifiedFlowPath()
    conditions = encode(pipe, **GUIDED)
    embeds = prompt_embeds(pipe.pipeline, PROMPTS)
    x = torch.randn(2, 4, 4, 4, generator=generators(1)[0])
    for time in (1.0, 0.77, 0.3, 0.02):
        positive, negative = (
            -pipe.transformer(
                x,
                torch.full((2,), 1 - time),
                embeds[f"{prefix}prompt_embeds"],
                embeds[f"{prefix}prompt_attention_mask"],
            ).sample
            for prefix in ("", "negative_")
        )
        predicted = pipe.family.predict(path.to_bounded(x, time), path.noise_to_signal(time), conditions)
        guided = 4 * positive - 3 * negative
        guided = guided * positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(predicted, x - time * guided, atol=2e-5, rtol=0)
        assert (positive - negative).abs().max() > 0.01


def test_dynamic_shift_is_that_of_the_stock_pipeline() -> None:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_lumina2())
    call = {**CALL, "output_type": "latent"}
    images = []
    for options in ({"use_dynamic_shifting": True}, {}):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(**options)
        stock = pipe.pipeline(PROMPTS, generator=generators(), **call).images
        torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
        images.append(stock)
    assert (images[0] - images[1]).abs().max() > 1e-2


def test_truncated_guidance_costs_one_evaluation(pipe: DiamondMapPipeline) -> None:
    call = {**CALL, **TRUNCATED}
    with counted(pipe) as counts:
        out = pipe(PROMPTS, **call)
        assert out.cost.network_evaluations == counts.network == 2 * (2 + 2 + 1 + 1)
    with counted(pipe) as counts:
        # The inner levels of a transition lie between those of its step and of the next.
        out = pipe(PROMPTS, alignment=NoAlignment(transition=GlassTransition(num_inner_steps=3)), **call)
        assert out.cost.network_evaluations == counts.network == 2 * 3 * (2 + 2 + 1 + 1)


@torch.no_grad()
def test_rows_at_different_levels_are_guided_each_by_its_own(pipe: DiamondMapPipeline) -> None:
    conditions = encode(pipe, **TRUNCATED)
    last, _ = conditions.shared["guided_levels"]
    levels, x = torch.tensor([2 * last, last], dtype=torch.float64), torch.randn(2, 4, 4, 4, generator=generators(1)[0])
    assert [pipe.family.evaluations_per_row(level, conditions) for level in levels] == [2, 1]
    both = pipe.family.predict(x, levels, conditions)
    for i in range(2):
        row = torch.tensor([i])
        alone = pipe.family.predict(x[row], float(levels[i]), conditions.rows(row))
        torch.testing.assert_close(both[row], alone, atol=1e-5, rtol=0)


def test_guidance_from_the_first_step_holds_above_it(pipe: DiamondMapPipeline) -> None:
    """Renoised look-aheads ask about levels above the one that they start from."""
    conditions = encode(pipe, **GUIDED, sigmas=[0.5, 0.25], num_inference_steps=2, cfg_trunc_ratio=0.5)
    low, _ = conditions.shared["guided_levels"]
    costs = [pipe.family.evaluations_per_row(level, conditions) for level in (low, 1.01 * low, 100.0, float("inf"))]
    assert costs == [1, 2, 2, 2]


def test_each_image_has_the_mask_of_its_own_prompt(pipe: DiamondMapPipeline) -> None:
    """The stock pipeline deals the masks of several prompts out in turn."""
    prompts = ["a ring", "a small red circle left of a blue star"]
    call = {**CALL, "output_type": "pt", "num_images_per_prompt": 2}
    together = pipe(prompts, generator=generators(4), **call).images
    for i, prompt in enumerate(prompts):
        alone = pipe.pipeline(prompt, generator=generators(2, first=2 * i), **call).images
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone, atol=1e-4, rtol=0)
