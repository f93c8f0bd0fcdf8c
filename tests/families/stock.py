"""With alignment off, users see their model: tests that run for each family and each of its variants."""

from __future__ import annotations

import inspect
import re
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline

from .family import PROMPTS, TESTED_APART, TinyFamily, brightness, generators

WORST_GAP = 3 / 255
"""Mean difference of half precision from float32 that no eye sees."""


class StockTests:
    """With alignment off, users see their model."""

    family: ClassVar[TinyFamily]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "variant" in metafunc.fixturenames:
            metafunc.parametrize("variant", ["plain", *self.family.variants])

    @pytest.fixture(scope="class")
    @classmethod
    def pipe(cls) -> DiamondMapPipeline:
        """Shared by the tests of a class: none may change it."""
        return cls.fresh()

    @classmethod
    def fresh(cls) -> DiamondMapPipeline:
        return DiamondMapPipeline.from_pipe(cls.family.build())

    def images(self, pipe: DiamondMapPipeline | DiffusionPipeline, *prompts: list[str], **call: Any) -> Tensor:
        """Of a call of the wrapped or of the stock pipeline; from the generators of the images if nothing is said."""
        if call.get("generator") is None:
            call["generator"] = generators()
        return pipe(*(prompts or (PROMPTS,)), **{"output_type": "pt", **self.family.call, **call}).images

    def assert_stock(self, pipe: DiamondMapPipeline, *prompts: list[str], **call: Any) -> Tensor:
        stock = self.images(pipe.pipeline, *prompts, **call)
        if isinstance(generator := call.get("generator"), torch.Generator):
            generator.manual_seed(generator.initial_seed())
        self.assert_same(self.images(pipe, *prompts, **call), stock)
        return stock

    def assert_same(self, images: Any, expected: Any) -> None:
        torch.testing.assert_close(images, expected, atol=self.family.tolerance, rtol=0)

    def test_the_stock_image_is_reproduced(self, pipe: DiamondMapPipeline, variant: str) -> None:
        images = self.assert_stock(pipe, **self.family.variants.get(variant, {}))
        assert images.isfinite().all()
        assert images.std() > 0.05

    def test_one_generator_draws_as_in_the_stock_pipeline(self, pipe: DiamondMapPipeline) -> None:
        generator = torch.Generator().manual_seed(3)
        assert len(self.assert_stock(pipe, generator=generator, num_images_per_prompt=2)) == 4

    def test_each_image_of_a_prompt_has_its_generator(self, pipe: DiamondMapPipeline) -> None:
        call = {"num_images_per_prompt": 2}
        four = self.images(pipe, generator=generators(4), **call)
        self.assert_same(four, self.images(pipe.pipeline, generator=generators(4), **call))
        self.assert_same(self.images(pipe, PROMPTS[1:], generator=generators(2, first=2), **call), four[2:])

    def test_given_latents_start_the_stock_image(self, pipe: DiamondMapPipeline) -> None:
        self.assert_stock(pipe, latents=self.latents())

    def latents(self) -> Tensor:
        return torch.randn(2, *self.family.latents_shape, generator=torch.Generator().manual_seed(5))

    def test_embeds_stand_for_their_prompts(self, pipe: DiamondMapPipeline) -> None:
        guided = self.family.variants.get(self.family.guided, {})
        guided = {name: value for name, value in guided.items() if not re.fullmatch(r"(negative_)?prompt(_\d)?", name)}
        self.assert_stock(pipe, None, **guided, **self.family.embeds(pipe.pipeline, PROMPTS))

    def test_output_types_are_those_of_the_stock_pipeline(self, pipe: DiamondMapPipeline) -> None:
        for output_type in ("latent", "np", "pil"):
            stock, ours = (self.images(p, output_type=output_type) for p in (pipe.pipeline, pipe))
            if output_type == "pil":
                assert [image.size for image in ours] == [image.size for image in stock]
                # A value between two shades may be rounded to either.
                gaps = [np.abs(np.int16(one) - np.int16(other)).max() for one, other in zip(ours, stock, strict=True)]
                assert max(gaps) <= 1
            else:
                self.assert_same(torch.as_tensor(ours), torch.as_tensor(stock))
        call = {**self.family.call, "output_type": "pt", "return_dict": False}
        images, rewards = pipe(PROMPTS, reward=brightness, alignment="none", **call)
        torch.testing.assert_close(brightness(images, PROMPTS), rewards)

    def test_callbacks_read_what_they_read_in_the_stock_pipeline(self, pipe: DiamondMapPipeline) -> None:
        stock, ours = ([], [])
        self.images(pipe.pipeline, **self.step_callback(pipe.pipeline, stock))
        self.images(pipe, callback_on_step_end=lambda _, *seen: ours.append(seen) or {})
        assert len(ours) == len(stock) == len(pipe.prepare(PROMPTS, **self.family.call).levels()) - 1
        for (index, timestep, tensors), (stock_index, stock_timestep, latents) in zip(ours, stock, strict=True):
            assert index == stock_index
            torch.testing.assert_close(float(timestep), float(stock_timestep), atol=1e-3, rtol=1e-3)
            self.assert_same(tensors["latents"], latents)

    def step_callback(self, pipeline: DiffusionPipeline, seen: list) -> dict[str, Any]:
        """The stock keywords under which each step's index, time and latents are recorded."""
        if "callback_on_step_end" not in inspect.signature(pipeline.__call__).parameters:
            return {"callback": lambda *step: seen.append(step), "callback_steps": 1}

        def record(pipeline: DiffusionPipeline, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            seen.append((index, timestep, tensors["latents"]))
            return {}

        return {"callback_on_step_end": record}

    def test_callbacks_replace_latents(self, pipe: DiamondMapPipeline) -> None:
        def halve(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            return {"latents": tensors["latents"] / 2}

        if "callback_on_step_end" in inspect.signature(pipe.pipeline.__call__).parameters:
            self.assert_stock(pipe, callback_on_step_end=halve, output_type="latent")
            self.assert_stock(pipe, callback_on_step_end=halve)
        calls, num_steps = [], len(pipe.prepare(PROMPTS, **self.family.call).levels()) - 1

        def zero(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            calls.append(index)
            assert pipeline._num_timesteps == num_steps
            return {"latents": torch.zeros_like(tensors["latents"])}

        assert self.images(pipe, callback_on_step_end=zero, output_type="latent").abs().max() == 0
        assert calls == list(range(num_steps))

    def test_an_interrupted_run_returns_clean_look_aheads(self, pipe: DiamondMapPipeline) -> None:
        """Where stock pipelines return latents with the noise that is left in them."""
        seen: list[Tensor] = []

        def stop(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict:
            seen.append(tensors["latents"])
            pipeline._interrupt = True
            return {}

        options = {"generator": generators(), **self.family.call}
        stopped = self.images(pipe, callback_on_step_end=stop, output_type="latent", **options)
        assert len(seen) == 1
        call = pipe.prepare(PROMPTS, **options)
        level = call.levels()[1]
        assert level > 0
        with call.active(), torch.no_grad():
            expected = call.family.predict(call.family.from_stock(seen[-1], level), level, call.conditions)
        self.assert_same(stopped, expected)

    def test_every_stock_keyword_works_or_is_refused_by_name(self, pipe: DiamondMapPipeline) -> None:
        refused = pipe.family.refused_arguments
        embeds = self.family.embeds(pipe.pipeline, PROMPTS)
        named = {
            *self.family.call,
            *self.family.apart,
            *embeds,
            *(key for variant in self.family.variants.values() for key in variant),
        }
        parameters = inspect.signature(type(pipe.pipeline).__call__).parameters.values()
        stock = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {"self"}
        assert stock - named - TESTED_APART - set(refused) == set(), "neither tested nor refused"
        assert set(refused) <= stock, "refused, but no stock keyword"
        for name in refused:
            with pytest.raises(TypeError, match=rf"'{name}' cannot be used"):
                pipe(PROMPTS, **{**self.family.call, name: object()})

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
    def test_half_precision_stays_close_to_float32(self, pipe: DiamondMapPipeline, dtype: torch.dtype) -> None:
        full = self.images(pipe, latents=self.latents())
        half = self.images(self.fresh().to(dtype), latents=self.latents()).float()
        assert half.isfinite().all()
        assert (half - full).abs().mean() < WORST_GAP
