"""Families with trained sizes sample at the nearest one and return the size that was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma
from diffusers.pipelines.sana import pipeline_sana, pipeline_sana_sprint

from benchmarks.zoo.pixart_sigma import build_tiny_pixart_sigma
from benchmarks.zoo.sana import build_tiny_sana, build_tiny_sana_sprint
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.families.pixart_sigma import PixArtSigmaFamily
from diamond_diffusers.families.sana import SanaFamily
from diamond_diffusers.families.sana_sprint import SanaSprintFamily

from .family import PROMPTS, generators

SMALL_BINS = {"0.5": [32.0, 64.0], "1.0": [32.0, 32.0]}
FAMILIES = {
    "sana": (build_tiny_sana, SanaFamily, pipeline_sana, "ASPECT_RATIO_1024_BIN"),
    "sana_sprint": (build_tiny_sana_sprint, SanaSprintFamily, pipeline_sana_sprint, "ASPECT_RATIO_1024_BIN"),
    "pixart_sigma": (build_tiny_pixart_sigma, PixArtSigmaFamily, pipeline_pixart_sigma, "ASPECT_RATIO_256_BIN"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_sampled_at_a_trained_size_and_cropped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, family, module, bins = FAMILIES[name]
    pipeline = build()
    assert family.resolution_bins[pipeline.transformer.config.sample_size] == getattr(module, bins)
    # The real bins start at 256 pixels; small ones keep the test quick.
    monkeypatch.setattr(module, bins, SMALL_BINS)
    monkeypatch.setattr(family, "resolution_bins", {32: SMALL_BINS})
    call = {"height": 40, "width": 72, "num_inference_steps": 2, "max_sequence_length": 8, "output_type": "pt"}
    stock = pipeline(PROMPTS, generator=generators(), **call).images
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    torch.testing.assert_close(pipe(PROMPTS, generator=generators(), **call).images, stock, atol=1e-4, rtol=0)
    assert stock.shape == (2, 3, 40, 72)
    latents = pipe(PROMPTS, generator=generators(), **{**call, "output_type": "latent"}).images
    assert latents.shape == (2, 4, 8, 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_other_sizes_are_named(name: str) -> None:
    build: Callable = FAMILIES[name][0]
    pipeline = build()
    pipeline.transformer.register_to_config(sample_size=17)
    pipe = DiamondMapPipeline.from_pipe(pipeline)
    with pytest.raises(ValueError, match=r"sample_size of .* is 17 .*give use_resolution_binning=False"):
        pipe("a ring", height=32, width=32, max_sequence_length=8)
