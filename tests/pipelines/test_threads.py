"""Calls of one pipeline in several threads, or in turns, give bit for bit what they give one after another."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from benchmarks.zoo.stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion
from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    DiamondPosterior,
    DiamondTransition,
    GlassPosterior,
    Guidance,
    Guide,
    NoAlignment,
    NoiseOptimization,
    PosteriorSMC,
)


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return images.mean((1, 2, 3))


EMBEDDED: list[dict[str, Any]] = [
    {"alignment": "none", "true_cfg_scale": 1.0, "num_inference_steps": 5},
    {"alignment": NoAlignment(DiamondTransition())},
    {"alignment": SMC(num_particles=2, posterior=GlassPosterior())},
    {
        "alignment": Guidance(guide=Guide("pathwise"), posterior=DiamondPosterior(num_samples=2)),
        "num_inference_steps": 3,
    },
    {"alignment": PosteriorSMC(num_particles=2), "num_inference_steps": 4},
    {"alignment": NoiseOptimization(num_iterations=2), "num_inference_steps": 2},
    {"alignment": "smc", "particle_batch_size": 1},
    {"alignment": Guidance(guide=Guide("pathwise")), "gradient_checkpointing": True},
]
DISCRETE: list[dict[str, Any]] = [
    {"alignment": "none"},
    {"alignment": "none", "eta": 1.0, "guidance_scale": 1.0},
    {"alignment": SMC(num_particles=2), "reward": brightness, "eta": 0.7},
    {"alignment": Guidance(guide=Guide("pathwise")), "reward": brightness, "num_inference_steps": 4},
]


def stable_diffusion() -> DiamondMapPipeline:
    pipe = DiamondMapPipeline.from_pipe(build_tiny_stable_diffusion())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


def sdxl() -> DiamondMapPipeline:
    """Whose decoder is cast for each call."""
    pipe = DiamondMapPipeline.from_pipe(build_tiny_sdxl(force_upcast=True))
    pipe.vae.to(torch.float16)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    return pipe


CASES: dict[str, tuple[Callable[[], DiamondMapPipeline], list[dict[str, Any]]]] = {
    "embedded": (DiamondMapPipeline.from_pretrained, EMBEDDED),
    "stable_diffusion": (stable_diffusion, DISCRETE),
    "sdxl": (sdxl, DISCRETE),
}


Case = tuple[DiamondMapPipeline, list[dict[str, Any]], list[list[Tensor]]]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A pipeline, calls of it, and what they draw one after another."""
    build, calls = CASES[request.param]
    pipe = build()
    pipe.set_progress_bar_config(disable=True)
    size = 64 if request.param == "embedded" else 16
    calls = [{"num_inference_steps": 2, "height": size, "width": size, **call} for call in calls]
    yield pipe, calls, [drawn(pipe, number, call) for number, call in enumerate(calls)]
    assert pipe.vae.dtype == (torch.float16 if request.param == "sdxl" else torch.float32)


def drawn(pipe: DiamondMapPipeline, number: int, call: dict[str, Any]) -> list[Tensor]:
    out = pipe(["a ring", "a star"], generator=torch.Generator().manual_seed(number), output_type="pt", **call)
    return [out.images, *([] if out.rewards is None else [out.rewards])]


@pytest.mark.parametrize("num_threads", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_in_threads(case: Case, num_threads: int) -> None:
    pipe, calls, alone = case
    trained = [weight.requires_grad for weight in pipe.components[pipe.family.network_name].parameters()]
    # Evaluations of one thread would meet those of the others.
    handle = pipe.family.network_module.register_forward_pre_hook(lambda *_: time.sleep(0.001))
    try:
        with ThreadPoolExecutor(num_threads) as threads:
            together = list(threads.map(lambda number: drawn(pipe, number, calls[number]), range(len(calls))))
    finally:
        handle.remove()
    for number, (in_threads, serial) in enumerate(zip(together, alone, strict=True)):
        assert all(map(torch.equal, in_threads, serial)), calls[number]
    assert [weight.requires_grad for weight in pipe.family.network_module.parameters()] == trained
    assert any(not torch.equal(alone[0][0], other[0]) for other in alone[1:])


def test_in_turns(case: Case) -> None:
    pipe, calls, alone = case
    runs = [
        pipe.iterate(["a ring", "a star"], generator=torch.Generator().manual_seed(number), output_type="pt", **call)
        for number, call in enumerate(calls)
    ]
    going = list(runs)
    while going:
        going = [run for run in going if next(run, None) is not None]
    for run, (images, *_) in zip(runs, alone, strict=True):
        assert torch.equal(run.output().images, images)


def test_callbacks_see_their_own_call() -> None:
    """Each turns its own guidance off, in the pipeline that both know, while the other waits within its callback."""
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    barrier = threading.Barrier(2)

    def scales(scale: float) -> list[float]:
        seen = []

        def callback(given: DiamondMapPipeline, step: int, *_: object) -> dict:
            barrier.wait(60)
            seen.append((given.guidance_scale, pipe.guidance_scale, pipe.num_timesteps))
            barrier.wait(60)
            pipe._guidance_scale = scale + step
            barrier.wait(60)
            return {}

        pipe("a ring", guidance_scale=scale, num_inference_steps=3, callback_on_step_end=callback)
        return seen

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(scales, (3.0, 5.0))
    assert first == [(scale, scale, 3) for scale in (3.0, 3.0, 4.0)]
    assert second == [(scale, scale, 3) for scale in (5.0, 5.0, 6.0)]
