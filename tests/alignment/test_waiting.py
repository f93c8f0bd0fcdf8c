"""A step on a GPU waits once, at its end or where it reads weights to resample by."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.zoo.published import PUBLISHED_MODELS
from diamond_diffusers import (
    SMC,
    DiamondMapPipeline,
    DiamondPosterior,
    Guidance,
    Guide,
    PosteriorResampling,
    PosteriorResamplingSMC,
    PosteriorSMC,
    WeightedPosterior,
)
from diamond_diffusers.alignment.base import Method

from ..waiting_device import DEVICE, waiting_device

METHODS: dict[str, tuple[Method, list[str]]] = {
    "guidance": (Guidance(guide=Guide("pathwise"), num_particles=2), ["settle"]),
    "three terms": (
        Guidance(WeightedPosterior(2), Guide("pathwise", scaling="norm", max_coefficient=20.0)),
        ["settle"],
    ),
    "smc": (
        SMC(num_particles=4, num_valuations=None, guide=Guide("tilted_mean"), posterior=DiamondPosterior(2)),
        ["read"],
    ),
    "smc without a valuation": (SMC(num_particles=4, num_valuations=0), ["settle"]),
    "posterior_smc": (PosteriorSMC(num_particles=4, num_valuations=None), ["read"]),
    "posterior_resampling_smc": (
        PosteriorResamplingSMC(num_particles=4, posterior=DiamondPosterior(2), num_valuations=None),
        ["read"],
    ),
    "posterior_resampling": (PosteriorResampling(num_particles=2, posterior=DiamondPosterior(2)), ["read"]),
}


def redness(images: Tensor, prompts: list[str]) -> Tensor:
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def waits_of_a_step(pipe: DiamondMapPipeline, method: Method, **arguments: object) -> list[str]:
    """The functions that wait in the second of four steps, neither the first nor the last."""
    options = {"num_inference_steps": 4, "reward": redness, "reward_scale": 50.0, "reward_prompt": "any", **arguments}
    generator = torch.Generator().manual_seed(0)
    with waiting_device() as waits:
        pipe.to(DEVICE)
        # Of several prompts some families take lists of tensors.
        options = tree_map(lambda value: value.to(DEVICE) if isinstance(value, Tensor) else value, options)
        with pipe.iterate(alignment=method, generator=generator, **options) as run:
            next(run)
            waits.clear()
            next(run)
            return list(waits)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_once(name: str) -> None:
    method, expected = METHODS[name]
    pipe = DiamondMapPipeline.from_pretrained()
    assert waits_of_a_step(pipe, method, prompt="a red star") == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", PUBLISHED_MODELS)
def test_a_step_of_every_family_waits_once(family: str) -> None:
    published = PUBLISHED_MODELS[family]
    pipe = DiamondMapPipeline.from_pipe(published.build("tiny", "cpu", torch.float32))
    arguments = published.arguments(pipe.pipeline, "tiny", None)
    waits = waits_of_a_step(pipe, Guidance(guide=Guide("pathwise")), **arguments)
    # Within their networks those of diffusers wait.
    assert [wait for wait in waits if wait != "network"] == ["settle"]
