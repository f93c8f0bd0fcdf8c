"""Gradients are the same while weights are moved and cast between evaluations: group offloading, layerwise casting."""

from __future__ import annotations

import itertools

import pytest
import torch

from diamond_diffusers import DiamondMapPipeline, Guidance, Guide
from diamond_diffusers.alignment.execution import Checkpointing
from diamond_diffusers.families.compat import moves_weights

from ..offloading import offload_in_groups, simulated_offloading
from .all_families import FAMILIES, family_of
from .family import PROMPTS, brightness, generators
from .gradients import assert_same, prepared, value_and_gradient

WAYS = {
    "leaf": ("leaf_level", 1, False),
    "leaf by streams": ("leaf_level", 1, True),
    "block": ("block_level", 1, False),
    "blocks": ("block_level", 2, False),
    "block by streams": ("block_level", 1, True),
}
QUICK = {
    ("flux", "leaf"),
    ("flux", "blocks"),
    ("sdxl", "block by streams"),
    ("sana", "block"),
    ("qwen_image", "leaf by streams"),
}


def modules_of(pipe):
    return pipe.family.network_module, pipe.vae


@pytest.mark.parametrize(
    "name, way",
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(FAMILIES, WAYS)
    ],
)
def test_group_offloading(name, way):
    family = family_of(name)
    expected = value_and_gradient(prepared(DiamondMapPipeline.from_pipe(family.build()), family), Checkpointing())
    for is_checkpointed in (True, False):
        pipe = DiamondMapPipeline.from_pipe(family.build())
        with simulated_offloading() as places:
            for module in modules_of(pipe):
                offload_in_groups(module, *WAYS[way])
            call, resting = prepared(pipe, family), places.present
            # Groups are fetched ahead once their order has been seen.
            for _ in range(2):
                assert_same(value_and_gradient(call, Checkpointing.of_all(is_checkpointed)), expected)
                assert places.present == resting


def test_a_call_that_fails_leaves_no_group_on_the_device():
    family = family_of("flux")
    pipe = DiamondMapPipeline.from_pipe(family.build())
    with simulated_offloading() as places:
        for module in modules_of(pipe):
            offload_in_groups(module, "block_level")
        call, resting = prepared(pipe, family), places.present
        handle = pipe.transformer.norm_out.register_forward_hook(lambda *_: pytest.fail("memory"))
        with pytest.raises(pytest.fail.Exception, match="memory"):
            value_and_gradient(call, Checkpointing.of_all(True))
        handle.remove()
        assert places.present == resting


def test_a_guided_call():
    family = family_of("flux")
    options = {"reward": brightness, "alignment": Guidance(guide=Guide("pathwise")), **family.call, "output_type": "pt"}
    expected = DiamondMapPipeline.from_pipe(family.build())(PROMPTS, generator=generators(), **options)
    pipe = DiamondMapPipeline.from_pipe(family.build())
    with simulated_offloading():
        for module in modules_of(pipe):
            offload_in_groups(module, "block_level", 2)
        offloaded = pipe(PROMPTS, generator=generators(), **options)
    torch.testing.assert_close(offloaded.images, expected.images, atol=0, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("flux", "stable_diffusion", "sana") else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_layerwise_casting(name):
    """As with the weights that casting has rounded."""
    family = family_of(name)
    pipe, rounded = (DiamondMapPipeline.from_pipe(family.build()) for _ in range(2))
    network = pipe.family.network_module
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert moves_weights(network)
    for layer, other in zip(network.modules(), rounded.family.network_module.modules(), strict=True):
        for own, weight in zip(layer.parameters(recurse=False), other.parameters(recurse=False), strict=True):
            weight.data = own.data.float()
    expected = value_and_gradient(prepared(rounded, family), Checkpointing())
    for is_checkpointed in (False, True):
        assert_same(value_and_gradient(prepared(pipe, family), Checkpointing.of_all(is_checkpointed)), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_group_offloading_from_a_gpu(name, way):
    family, (kind, num_blocks, use_stream) = family_of(name), WAYS[way]
    pipe = DiamondMapPipeline.from_pipe(family.build().to("cuda"))
    expected = value_and_gradient(prepared(pipe, family), Checkpointing())
    for module in modules_of(pipe):
        module.enable_group_offload(
            torch.device("cuda"), offload_type=kind, num_blocks_per_group=num_blocks, use_stream=use_stream
        )
    call = prepared(pipe, family)
    for _ in range(2):
        assert_same(value_and_gradient(call, Checkpointing.of_all(True)), expected, atol=1e-5, rtol=1e-3)
        weights = [weight for module in modules_of(pipe) for weight in module.parameters()]
        assert {weight.device.type for weight in weights} == {"cpu"}
