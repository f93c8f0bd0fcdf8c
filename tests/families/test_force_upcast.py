"""Decoders whose float16 may overflow are differentiated in float32, whatever the family and the decoder."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderTiny

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.execution import Checkpointing

from ..offloading import offload_in_groups, simulated_offloading
from .all_families import family_of
from .family import generators
from .gradients import assert_same, prepared, value_and_gradient


def decoders(name, is_preview, dtype, factor=1.0):
    """A pipeline whose own decoder, or that for look-aheads, has a dtype, and larger activations by a factor."""
    family = family_of(name)
    pipeline = family.build()
    pipe = DiamondMapPipeline.from_pipe(
        pipeline, preview_vae=family.preview_vae(pipeline).requires_grad_(False) if is_preview else None
    )
    decoder = pipe.preview_vae if is_preview else pipe.vae
    decoder.register_to_config(force_upcast=True)
    # Of numbers that float16 has, so that casting to it rounds nothing.
    decoder.to(torch.float16)
    weight = next(decoder.decoder.parameters())
    weight.data *= factor
    return family, pipe, decoder.to(dtype)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize(
    "name, is_preview, factor", [("stable_diffusion", False, 1e5), ("flux", False, 1e5), ("sdxl", True, 1.0)]
)
def test_gradients_are_those_in_float32(name, is_preview, factor, is_checkpointed):
    # With the larger factor the first convolution gives infinity in float16.
    family, whole, _ = decoders(name, is_preview, torch.float32, factor)
    expected = value_and_gradient(prepared(whole, family), Checkpointing())
    family, half, decoder = decoders(name, is_preview, torch.float16, factor)
    made = value_and_gradient(prepared(half, family), Checkpointing.of_all(is_checkpointed))
    assert_same(made, expected)
    assert decoder.dtype == torch.float16


def test_images_are_decoded_as_by_the_stock_pipeline():
    """Which takes float16 but for SDXL."""
    family, pipe, decoder = decoders("flux", False, torch.float16)
    dtypes = []
    decoder.decoder.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    pipe("a red circle", **family.call)
    assert dtypes == [torch.float16]


def test_the_stock_pipeline_of_sdxl_takes_float32_for_images_too():
    """Also where offloading brings the weights in float16 each time."""
    family, pipe, decoder = decoders("sdxl", False, torch.float16)
    images = []
    for is_offloaded in (False, True):
        with simulated_offloading():
            if is_offloaded:
                offload_in_groups(decoder, "leaf_level", streams=True)
            images.append(pipe("a red circle", generator=generators(1), **{**family.call, "output_type": "pt"}).images)
    torch.testing.assert_close(images[1], images[0], atol=0, rtol=0)
    assert decoder.dtype == torch.float16


def test_only_where_the_configuration_says_so():
    family, pipe, decoder = decoders("flux", False, torch.float16)
    decoder.register_to_config(force_upcast=False)
    dtypes = []
    decoder.decoder.register_forward_pre_hook(lambda module, args: dtypes.append(args[0].dtype))
    value_and_gradient(prepared(pipe, family), Checkpointing())
    assert dtypes == [torch.float16]
    assert AutoencoderTiny().config.force_upcast is False
