"""Weights that wait on the CPU, by components, layers or groups of layers, and weights that are stored in 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline

from ..families.all_families import FAMILIES
from ..families.common import offload_sequentially
from .calls import PATHWISE, assert_near, fresh, images

pytestmark = pytest.mark.gpu

CONVOLUTIONAL = ("stable_diffusion", "sdxl", "sana", "sana_sprint")
"""Whose networks have convolutions; these alone may be refused."""


def by_component(pipe: DiamondMapPipeline, device: torch.device) -> None:
    pipe.enable_model_cpu_offload(device=device)


def by_layer(pipe: DiamondMapPipeline, device: torch.device) -> None:
    if device.type == "cpu":
        # The stock method cannot offload text encoders from the CPU to itself.
        offload_sequentially(pipe)
    else:
        pipe.enable_sequential_cpu_offload(device=device)


def by_leaf(pipe: DiamondMapPipeline, device: torch.device) -> None:
    pipe.enable_group_offload(device, torch.device("cpu"), offload_type="leaf_level")


def by_block(pipe: DiamondMapPipeline, device: torch.device) -> None:
    streams = device.type in ("cuda", "xpu")
    pipe.enable_group_offload(
        device, torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1, use_stream=streams
    )


@pytest.mark.parametrize("offload", [by_component, by_layer, by_leaf, by_block])
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_weights_are_differentiated_through(
    family: str, offload: Callable[[DiamondMapPipeline, torch.device], None], gpu: torch.device
) -> None:
    whole = fresh(family, gpu)
    pipe = fresh(family, torch.device("cpu"))
    offload(pipe, gpu)
    assert_near(images(pipe, family, **PATHWISE), images(whole, family, **PATHWISE), 1e-4)
    assert_near(images(pipe, family), images(whole, family), 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_in_8_bits_are_differentiated_through_or_refused(family: str, gpu: torch.device) -> None:
    pipe = fresh(family, gpu, torch.bfloat16)
    network = pipe.family.network_module
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    try:
        drawn = images(pipe, family, **PATHWISE)
    except ValueError as error:
        assert family in CONVOLUTIONAL and type(network).__name__ in str(error)
    else:
        assert drawn.isfinite().all()
