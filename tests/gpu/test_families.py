"""Every family on a GPU in float32: as the stock pipeline, as on the CPU, and the same again."""

from __future__ import annotations

import gc

import pytest
import torch

from diamond_diffusers import SMC, BestOfN, Guidance, Guide

from ..families.all_families import FAMILIES
from ..families.family import PROMPTS, brightness, generators
from .calls import PATHWISE, assert_near, fresh, images

pytestmark = pytest.mark.gpu

METHODS = {
    "best_of_n": BestOfN(num_particles=2),
    "smc": SMC(num_particles=3),
    "isotropic": Guidance(num_particles=2),
    "pathwise": Guidance(guide=Guide("pathwise")),
}
FROM_STOCK = 1e-5
"""Between the same kernels in another order; 2e-6 was seen on an H200."""
FROM_CPU = 1e-4
"""Between other kernels; 1e-5 was seen on an H200."""


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_those_of_the_stock_pipeline_and_of_the_cpu(family: str, gpu: torch.device) -> None:
    pipe = fresh(family, gpu)
    drawn = images(pipe, family)
    assert_near(drawn, images(pipe.pipeline, family), FROM_STOCK)
    assert_near(drawn, images(fresh(family, torch.device("cpu")), family), FROM_CPU)


@pytest.mark.parametrize("family", FAMILIES)
def test_generators_of_the_device_draw_as_in_the_stock_pipeline(family: str, gpu: torch.device) -> None:
    def on_device() -> list[torch.Generator]:
        return [torch.Generator(gpu).manual_seed(seed) for seed in range(2)]

    pipe = fresh(family, gpu)
    drawn, stock = (images(one, family, generator=on_device()) for one in (pipe, pipe.pipeline))
    assert_near(drawn, stock, FROM_STOCK)
    aligned = images(pipe, family, generator=on_device(), reward=brightness, alignment=METHODS["smc"])
    assert aligned.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_repeat_and_do_not_depend_on_the_batch(family: str, method: str, gpu: torch.device) -> None:
    pipe = fresh(family, gpu)
    call = {"reward": brightness, "alignment": METHODS[method], "particle_batch_size": 2}
    first = images(pipe, family, **call)
    # One kernel of Qwen-Image's network adds in no order.
    assert_near(images(pipe, family, **call), first, 1e-6)
    alone = images(pipe, family, PROMPTS[1:], generators(1, first=1), **call)
    assert_near(first[1:], alone, FROM_STOCK)


@pytest.mark.parametrize("family", FAMILIES)
def test_memory_does_not_grow_over_calls(family: str, gpu: torch.device) -> None:
    def allocated() -> int:
        gc.collect()
        # The CPU has no such count.
        return 0 if gpu.type == "cpu" else torch.get_device_module(gpu).memory_allocated(gpu)

    pipe = fresh(family, gpu)
    images(pipe, family, **PATHWISE)
    before = allocated()
    for _ in range(2):
        images(pipe, family, **PATHWISE)
    assert allocated() == before
