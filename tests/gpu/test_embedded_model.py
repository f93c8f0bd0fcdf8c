"""The embedded model with every method by its name, in three precisions, beside the CPU."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.pipelines.output import DiamondMapPipelineOutput

from ..families.family import generators

pytestmark = pytest.mark.gpu

PROMPTS = ["a red star left of a blue ring", "four green hearts"]
NUM_STEPS = 4
# Enough to see that they run; their defaults take minutes.
SHORTENED = {
    "noise_optimization": {"num_iterations": 2},
    "noise_evolution": {"num_iterations": 2},
    "reno": {"num_iterations": 2},
    "random_search": {"num_candidates": 4},
    "zero_order_search": {"num_candidates": 4},
    "rbf": {"num_candidates": 2},
    "svdd": {"branching": 3},
    "code": {"branching": 3, "block_size": 2},
}
# What is chosen by comparing rewards may be another image where two of them are nearly equal.
SMOOTH = ("none", "guidance", "dps", "fmrg", "noise_optimization")


@cache
def loaded(device: torch.device, dtype: torch.dtype) -> DiamondMapPipeline:
    pipe = DiamondMapPipeline.from_pretrained(dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> DiamondMapPipelineOutput:
    method = {"name": name, **SHORTENED[name]} if name in SHORTENED else name
    call = {"reward": "miniature", "num_inference_steps": NUM_STEPS, "output_type": "pt"}
    return loaded(device, dtype)(PROMPTS, alignment=method, generator=generators(), **call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", [*METHODS.names(), *PRESETS.names()])
def test_methods_run_in_every_precision(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    out = run(name, gpu, dtype)
    assert out.images.isfinite().all() and out.rewards.isfinite().all()
    assert out.images.device.type == gpu.type
    if dtype == torch.float32 and name in SMOOTH:
        torch.testing.assert_close(out.images.cpu(), run(name, torch.device("cpu")).images, atol=1e-2, rtol=0)
