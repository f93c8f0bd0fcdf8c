"""GLASS schedulers in unmodified stock pipelines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    StableDiffusion3Img2ImgPipeline,
)
from torch import Tensor

from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.pixart_sigma import build_tiny_pixart_sigma
from benchmarks.zoo.sana import build_tiny_sana
from benchmarks.zoo.stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion, zero_terminal_snr
from benchmarks.zoo.stable_diffusion_3 import build_tiny_stable_diffusion_3
from diamond_diffusers import (
    DiamondMapPipeline,
    GlassDDPMScheduler,
    GlassFlowMatchScheduler,
    GlassTransition,
    NoAlignment,
)
from diamond_diffusers.families.schedules import stock_levels, stock_transition
from diamond_diffusers.schedulers.base import GlassSchedulerMixin

PROMPTS = ["a red circle", "two blue stars"]
STEPS, INNER = 3, 3
SMALL = {"height": 16, "width": 16}


def generators(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@dataclass(frozen=True)
class Case:
    """A stock pipeline, what its call needs, and the stock scheduler that has the levels of the GLASS scheduler."""

    build: Callable[[], DiffusionPipeline]
    call: dict[str, Any]
    glass: type
    stock: type

    def pipeline(self, **options: Any) -> DiffusionPipeline:
        """With a GLASS scheduler of its own scheduler's configuration."""
        pipeline = self.build()
        pipeline.scheduler = self.glass.from_config(pipeline.scheduler.config, **options)
        return pipeline

    def images(self, pipeline: Any, prompts: Any = PROMPTS, **call: Any) -> Tensor:
        call = {"num_inference_steps": STEPS, "output_type": "pt", "generator": generators(), **self.call, **call}
        if isinstance(pipeline.scheduler, GlassSchedulerMixin):
            # Some of the stock loops do not hand their generator to the scheduler.
            pipeline.scheduler.set_generator(call["generator"])
        return pipeline(prompts, **call).images


FLUX = Case(
    build_tiny_flux,
    {**SMALL, "max_sequence_length": 12, "true_cfg_scale": 2.0, "negative_prompt": ["a ring"] * 2},
    GlassFlowMatchScheduler,
    FlowMatchEulerDiscreteScheduler,
)


def build_sana() -> DiffusionPipeline:
    """With the scheduler that SANA is published with."""
    pipeline = build_tiny_sana()
    pipeline.scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    return pipeline


CASES = {
    "flux": FLUX,
    "stable_diffusion_3": Case(
        build_tiny_stable_diffusion_3,
        SMALL,
        GlassFlowMatchScheduler,
        FlowMatchEulerDiscreteScheduler,
    ),
    "sana": Case(
        build_sana,
        {"height": 32, "width": 32, "use_resolution_binning": False, "complex_human_instruction": None},
        GlassFlowMatchScheduler,
        FlowMatchEulerDiscreteScheduler,
    ),
    "pixart_sigma": Case(
        build_tiny_pixart_sigma, {**SMALL, "use_resolution_binning": False}, GlassDDPMScheduler, DDIMScheduler
    ),
    "stable_diffusion": Case(build_tiny_stable_diffusion, SMALL, GlassDDPMScheduler, DDIMScheduler),
    "zero_terminal_snr": Case(
        lambda: zero_terminal_snr(build_tiny_stable_diffusion("v_prediction")),
        {**SMALL, "guidance_rescale": 0.7},
        GlassDDPMScheduler,
        DDIMScheduler,
    ),
    "sdxl": Case(build_tiny_sdxl, SMALL, GlassDDPMScheduler, DDIMScheduler),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_stock_pipeline_samples_as_diamond_map_pipeline_does(case):
    pipeline = case.pipeline(num_inner_steps=INNER, correlation=0.5)
    stock = case.images(pipeline)
    wrapped = DiamondMapPipeline.from_pipe(pipeline)
    alignment = NoAlignment(transition=GlassTransition(INNER, 0.5))
    pipeline.scheduler = case.stock.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(case.images(wrapped, alignment=alignment), stock, atol=1e-4, rtol=0)
    assert stock.std() > 0.02


@pytest.mark.parametrize("name", ["stable_diffusion_3", "zero_terminal_snr"])
def test_diamond_map_pipeline_reads_a_glass_scheduler(name):
    pipeline = CASES[name].pipeline(num_inner_steps=INNER)
    assert stock_transition(pipeline.scheduler) == GlassTransition(INNER)
    pipeline.scheduler.set_timesteps(4)
    outer = stock_levels(pipeline.scheduler)
    pipeline.scheduler = CASES[name].stock.from_config(pipeline.scheduler.config)
    pipeline.scheduler.set_timesteps(4)
    assert outer == pytest.approx(stock_levels(pipeline.scheduler), rel=1e-6)


@pytest.mark.parametrize("name", ["flux", "sana", "pixart_sigma", "stable_diffusion"])
def test_one_inner_step_at_full_correlation_is_the_stock_step(name):
    case = CASES[name]
    pipeline = case.pipeline(num_inner_steps=1, correlation=1.0)
    # DDIM's steps end where the next begin only for numbers of steps that divide the training steps.
    glass = case.images(pipeline, num_inference_steps=4)
    pipeline.scheduler = case.stock.from_config(pipeline.scheduler.config)
    torch.testing.assert_close(glass, case.images(pipeline, num_inference_steps=4), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["flux", "stable_diffusion"])
def test_image_i_depends_on_generator_i_alone(name):
    case = CASES[name]
    pipeline = case.pipeline(num_inner_steps=2)
    both = case.images(pipeline)
    alone = {key: value[:1] if isinstance(value, list) else value for key, value in case.call.items()}
    for image in range(2):
        images = case.images(pipeline, PROMPTS[image], **alone, generator=[generators()[image]])
        torch.testing.assert_close(both[image : image + 1], images, atol=1e-4, rtol=0)
    torch.testing.assert_close(case.images(pipeline), both, atol=0, rtol=0)


@contextmanager
def recorded(pipeline):
    """Totals and updates of progress bars, and the inputs and timesteps of the transformer."""
    record = {"totals": [], "updates": 0, "inputs": [], "timesteps": []}

    class Bar:
        def update(self):
            record["updates"] += 1

    @contextmanager
    def progress_bar(iterable=None, total=None):
        record["totals"].append(total)
        yield Bar()

    def hook(module, args, kwargs):
        record["inputs"].append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])
        record["timesteps"].append(kwargs["timestep"].flatten()[0].item())

    handle = pipeline.transformer.register_forward_pre_hook(hook, with_kwargs=True)
    pipeline.progress_bar = progress_bar
    yield record
    handle.remove()
    del pipeline.progress_bar


def test_progress_bars_count_outer_steps():
    case = CASES["stable_diffusion_3"]
    pipeline = case.pipeline(num_inner_steps=INNER)
    with recorded(pipeline) as record:
        case.images(pipeline)
    assert record["totals"] == [STEPS]
    assert record["updates"] == STEPS
    assert len(record["inputs"]) == pipeline.num_timesteps == STEPS * INNER


def changing_after(step):
    def callback(pipeline, index, timestep, tensors):
        return {"latents": tensors["latents"] * 0.9} if index == step else {}

    return callback


@pytest.mark.parametrize("name", ["flux", "stable_diffusion_3"])
def test_callbacks_change_particles_but_not_queries(name):
    case = CASES[name]
    pipeline = case.pipeline(num_inner_steps=2)
    plain = case.images(pipeline)
    with pytest.raises(ValueError, match="sample was changed after step 1"):
        case.images(pipeline, callback_on_step_end=changing_after(0))
    changed = case.images(pipeline, callback_on_step_end=changing_after(1))
    assert (changed - plain).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "shape"), [("flux", (4, 16)), ("sana", (4, 8, 8)), ("stable_diffusion", (4, 8, 8))])
def test_a_bfloat16_pipeline_stays_close_to_float32(name, shape):
    case = CASES[name]
    pipeline = case.pipeline(num_inner_steps=2)
    latents = torch.randn(2, *shape, generator=generators()[1]).bfloat16()
    full = case.images(pipeline, latents=latents.float())
    half = case.images(pipeline.to(torch.bfloat16), latents=latents).float()
    assert half.isfinite().all()
    assert (half - full).abs().mean() < 3 / 255


IMAGE = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(8))


def image_to_image(pipeline, **call):
    pipeline.set_progress_bar_config(disable=True)
    if isinstance(pipeline.scheduler, GlassSchedulerMixin):
        pipeline.scheduler.set_generator(call["generator"])
    return pipeline(PROMPTS, image=IMAGE, output_type="pt", **call).images


def sd3_image_to_image(scheduler):
    components = build_tiny_stable_diffusion_3().components
    return StableDiffusion3Img2ImgPipeline(**{**components, "scheduler": scheduler})


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_image_to_image_begins_at_the_outer_level_of_its_strength(strength):
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipelines = {
        name: sd3_image_to_image(scheduler)
        for name, scheduler in {
            "stock": stock,
            "euler": GlassFlowMatchScheduler.from_config(stock.config, num_inner_steps=1, correlation=1.0),
            "glass": GlassFlowMatchScheduler.from_config(stock.config, num_inner_steps=3),
        }.items()
    }
    images, records = {}, {}
    for name, pipeline in pipelines.items():
        with recorded(pipeline) as records[name]:
            images[name] = image_to_image(
                pipeline, strength=strength, num_inference_steps=8, generator=generators(), height=16, width=16
            )
    torch.testing.assert_close(images["euler"], images["stock"], atol=1e-4, rtol=0)
    outer_steps = len(records["stock"]["inputs"])
    assert outer_steps == int(8 * strength)
    assert records["glass"]["totals"] == [outer_steps]
    assert records["glass"]["updates"] == outer_steps
    assert len(records["glass"]["inputs"]) == 3 * outer_steps
    assert records["glass"]["timesteps"][::3] == pytest.approx(records["stock"]["timesteps"], rel=1e-6)
    torch.testing.assert_close(records["glass"]["inputs"][0], records["stock"]["inputs"][0])


def test_image_to_image_that_counts_inner_steps_is_refused_with_a_remedy():
    """FLUX passes sigmas, and takes the length of the expanded list for its number of steps."""
    flux = build_tiny_flux()
    components = {**flux.components, "scheduler": flux.scheduler}
    call = {"height": 16, "width": 16, "max_sequence_length": 12, "num_inference_steps": 4}
    stock = FluxImg2ImgPipeline(**components)
    with recorded(stock) as stock_record:
        expected = image_to_image(stock, strength=0.5, generator=generators(), **call)

    def glass(**options):
        scheduler = GlassFlowMatchScheduler.from_config(flux.scheduler.config, **options)
        return FluxImg2ImgPipeline(**{**components, "scheduler": scheduler})

    euler = image_to_image(glass(num_inner_steps=1, correlation=1.0), strength=0.5, generator=generators(), **call)
    torch.testing.assert_close(euler, expected, atol=1e-4, rtol=0)
    pipeline = glass(num_inner_steps=2)
    for strength in (0.5, 0.8):
        with pytest.raises(ValueError, match=r"give it strength=1\.0 and sigmas"):
            image_to_image(pipeline, strength=strength, generator=generators(), **call)
    remedy = {**call, "strength": 1.0, "sigmas": np.linspace(1, 1 / 4, 4)[2:], "num_inference_steps": 2}
    with recorded(pipeline) as record:
        image_to_image(pipeline, generator=generators(), **remedy)
    assert record["timesteps"][::2] == pytest.approx(stock_record["timesteps"], rel=1e-6)
    torch.testing.assert_close(record["inputs"][0], stock_record["inputs"][0])


IN_A_FRESH_PROCESS = """
import sys
import diamond_diffusers
assert "torch" not in sys.modules and "diffusers" not in sys.modules
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
from tests.schedulers.test_stock_pipelines import CASES
for name in sys.argv[2:]:
    pipeline = DiffusionPipeline.from_pretrained(f"{sys.argv[1]}/{name}")
    assert type(pipeline.scheduler) is getattr(diamond_diffusers, type(pipeline.scheduler).__name__)
    pipeline.set_progress_bar_config(disable=True)
    torch.save(CASES[name].images(pipeline), f"{sys.argv[1]}/{name}.pt")
"""


@pytest.mark.parametrize("names", [["flux"], pytest.param(["pixart_sigma"], marks=pytest.mark.slow)])
def test_a_saved_stock_pipeline_reloads_in_a_fresh_process(tmp_path, names):
    expected = {}
    for name in names:
        pipeline = CASES[name].pipeline(num_inner_steps=2, correlation=0.8)
        expected[name] = CASES[name].images(pipeline)
        pipeline.save_pretrained(tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path), *names], env=environment, check=True, timeout=300
    )
    for name in names:
        images = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        torch.testing.assert_close(images, expected[name], atol=1e-5, rtol=0)
