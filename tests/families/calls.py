"""What a call of `DiamondMapPipeline` has in common with one of the stock pipeline, whatever the family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from diffusers.pipelines.auto_pipeline import (
    AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
    AUTO_INPAINT_PIPELINES_MAPPING,
    AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
)
from torch import Tensor

from diamond_diffusers import SMC, BestOfN, DiamondMapPipeline, Guidance, Guide

from .family import PROMPTS, brightness, generators
from .stock import StockTests

GENERATORS: dict[str, Callable[[], Any]] = {
    "one generator": lambda: torch.Generator().manual_seed(3),
    "one for each image": generators,
    "the global one": lambda: None,
}
TASKS = [
    (AutoPipelineForText2Image, AUTO_TEXT2IMAGE_PIPELINES_MAPPING),
    (AutoPipelineForImage2Image, AUTO_IMAGE2IMAGE_PIPELINES_MAPPING),
    (AutoPipelineForInpainting, AUTO_INPAINT_PIPELINES_MAPPING),
]


class CallTests(StockTests):
    """A stock call and ours, side by side."""

    def guided_call(self) -> dict[str, Any]:
        return {**self.family.call, **self.family.variants.get(self.family.guided, {})}

    @pytest.mark.parametrize("source", GENERATORS)
    def test_calls_in_a_row_draw_as_those_of_the_stock_pipeline(self, pipe: DiamondMapPipeline, source: str) -> None:
        def three_calls(one: Any, **options: Any) -> Tensor:
            torch.manual_seed(7)
            call = {**self.family.call, "generator": GENERATORS[source](), "output_type": "latent", **options}
            return torch.stack([one(list(PROMPTS), **call).images for _ in range(3)])

        def assert_same(latents: Tensor, stock: Tensor) -> None:
            # The tolerance is that of images, of which no number exceeds 1.
            torch.testing.assert_close(latents, stock, atol=self.family.tolerance * stock.abs().max().item(), rtol=0)

        with torch.random.fork_rng():
            stock = three_calls(pipe.pipeline)
            assert_same(three_calls(pipe), stock)
            assert (stock[0] - stock[1]).abs().max() > 1e-2
            # The first of several particles is the plain sample, of which all rewards are equal at this scale.
            best = {"reward": brightness, "reward_scale": 0.0, "alignment": BestOfN(num_particles=2)}
            assert_same(three_calls(pipe, **best), stock)

    def test_the_signature_shows_the_stock_keywords(self, pipe: DiamondMapPipeline) -> None:
        shown = inspect.signature(pipe.__call__).parameters
        stock = inspect.signature(pipe.pipeline.__call__).parameters
        taken = {name for name, parameter in stock.items() if parameter.kind is not parameter.VAR_KEYWORD}
        assert taken - set(shown) == set(pipe.family.refused_arguments)
        own = {"reward", "alignment", "reward_scale", "final_selection", "particle_batch_size", "reward_prompt"}
        assert own <= set(shown)
        # Every family's pipeline is called back, by this name.
        assert set(shown) - taken >= own
        assert {name: shown[name].default for name in taken & set(shown)} == {
            name: stock[name].default for name in taken & set(shown)
        }
        assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in shown.values())

    def test_stock_classes_are_made_of_its_components(self, pipe: DiamondMapPipeline) -> None:
        name = type(pipe.pipeline).__name__
        for auto, mapping in TASKS:
            model = [key for key, kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items() if kind.__name__ == name]
            if model and model[0] in mapping:
                made = auto.from_pipe(pipe)
                assert type(made) is mapping[model[0]]
                assert getattr(made, pipe.family.network_name) is pipe.family.network_module
        assert isinstance(pipe, type(pipe.pipeline)) and isinstance(pipe, DiamondMapPipeline)

    def test_latents_changed_in_place_count(self, pipe: DiamondMapPipeline) -> None:
        def halve(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            if index == 0:
                tensors["latents"].mul_(0.5)
            return {}

        halved = self.images(pipe, callback_on_step_end=halve)
        if "callback_on_step_end" in inspect.signature(pipe.pipeline.__call__).parameters:
            self.assert_same(halved, self.images(pipe.pipeline, callback_on_step_end=halve))
        assert (halved - self.images(pipe)).abs().max() > 1e-2

    def test_callbacks_are_shown_the_tensors_of_the_stock_loop(self, pipe: DiamondMapPipeline) -> None:
        names = [name for name in getattr(pipe.pipeline, "_callback_tensor_inputs", []) if name != "denoised"]
        seen: list[dict[str, Any]] = []

        def look(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict:
            seen.append(dict(tensors))
            return {}

        if not names:
            return
        for one in (pipe.pipeline, pipe):
            watched = {"callback_on_step_end": look, "callback_on_step_end_tensor_inputs": names}
            self.images(one, **self.guided_call(), **watched)
        count = len(seen) // 2
        for ours, stock in zip(seen[count:], seen[:count], strict=True):
            assert set(ours) == set(stock) == set(names)
            for name in names:
                torch.testing.assert_close(ours[name], stock[name], atol=self.family.tolerance, rtol=0)
        with pytest.raises(ValueError, match=r"holds 'images', which .*; choose from latents"):
            pipe(PROMPTS, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["images"], **self.family.call)

    def test_prompt_embeddings_that_a_callback_changes_count(self, pipe: DiamondMapPipeline) -> None:
        def turn(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict:
            embeds = tensors["prompt_embeds"]
            turned = [rows.flip(-1) for rows in embeds] if isinstance(embeds, list) else embeds.flip(-1)
            return {"prompt_embeds": turned} if index == 0 else {}

        if hasattr(pipe.pipeline, "_callback_tensor_inputs"):
            watched = {"callback_on_step_end": turn, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
            stock, ours = (self.images(one, **self.guided_call(), **watched) for one in (pipe.pipeline, pipe))
            self.assert_same(ours, stock)
            assert (ours - self.images(pipe, **self.guided_call())).abs().max() > 1e-4

    def test_guidance_that_a_callback_cuts_off_ends(self, pipe: DiamondMapPipeline) -> None:
        if self.family.guided is None or not hasattr(type(pipe.pipeline), "do_classifier_free_guidance"):
            # There it has a name of its own, which stock loops do not read again.
            return

        def cut_off(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            if index > 0:
                return {}
            pipeline._guidance_scale = 0.0
            return {name: tensors[name].chunk(2)[-1] for name in names}

        names = [name for name in pipe.family.loop_tensors if not name.startswith("negative_")]
        names = [name for name in names if name in pipe.pipeline._callback_tensor_inputs]
        names = names if pipe.family.joins_negative else []
        call = {**self.guided_call(), "callback_on_step_end_tensor_inputs": names, "callback_on_step_end": cut_off}
        whole = self.images(pipe, **self.guided_call())
        if pipe.family.name != "sana":
            # SANA's loop would have a mask of twice as many rows.
            self.assert_same(self.images(pipe, **call), self.images(pipe.pipeline, **call))
        out = pipe(PROMPTS, generator=generators(), **{**call, "output_type": "pt"})
        steps = len(out.trace.steps)
        assert out.cost.network_evaluations == 2 * (steps + 1)
        assert (out.images - whole).abs().max() > 1e-4
        aligned = pipe(PROMPTS, reward=brightness, alignment=SMC(num_particles=2), generator=generators(), **call)
        # What is known ahead of the cut is found again without guidance.
        assert aligned.cost.network_evaluations == 2 * 2 * (2 + 2 + (steps - 1))

    def test_inference_mode_around_a_call(self, pipe: DiamondMapPipeline) -> None:
        guidance = {"reward": brightness, "alignment": Guidance(guide=Guide("pathwise"))}
        with torch.inference_mode():
            # What a stock call leaves in its pipeline does no harm.
            self.images(pipe.pipeline)
            given = self.family.embeds(pipe.pipeline, PROMPTS) | {"latents": self.latents()}
            given = {key: value for key, value in given.items() if not key.startswith("negative_")}
            inside = [self.images(pipe), self.images(pipe, **guidance), self.images(pipe, None, **given)]
        assert not any(images.is_inference() for images in inside)
        assert torch.equal(inside[0], self.images(pipe))
        assert torch.equal(inside[1], self.images(pipe, **guidance))
        assert inside[2].isfinite().all()
