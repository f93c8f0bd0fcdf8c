"""The tiny models of every family that can have a Diamond Map, by name of the family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline

from .flux import build_tiny_flux
from .pixart_sigma import build_tiny_pixart_sigma
from .sana import build_tiny_sana
from .stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion
from .stable_diffusion_3 import build_tiny_stable_diffusion_3


@dataclass(frozen=True)
class TinyModel:
    """A family's tiny pipeline, the keywords of a call, and the shape of an image's latents in the family."""

    build: Callable[[], DiffusionPipeline]
    call: Mapping[str, Any]
    shape: tuple[int, ...]


_SMALL = {"height": 16, "width": 16}
_BINNED = {"use_resolution_binning": False, "max_sequence_length": 8}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a ring"}

TINY_MODELS = {
    "flux": TinyModel(
        build_tiny_flux,
        {**_SMALL, "max_sequence_length": 12, "true_cfg_scale": 3.0, "negative_prompt": ["a ring"] * 2},
        (4, 16),
    ),
    "stable_diffusion_3": TinyModel(
        build_tiny_stable_diffusion_3, {**_SMALL, **GUIDED, "max_sequence_length": 12}, (4, 4, 4)
    ),
    "sana": TinyModel(build_tiny_sana, {"height": 32, "width": 32, **_BINNED, **GUIDED}, (4, 8, 8)),
    "pixart_sigma": TinyModel(build_tiny_pixart_sigma, {**_SMALL, **_BINNED, **GUIDED}, (4, 4, 4)),
    "stable_diffusion": TinyModel(build_tiny_stable_diffusion, {**_SMALL, **GUIDED}, (4, 8, 8)),
    "sdxl": TinyModel(build_tiny_sdxl, {**_SMALL, **GUIDED}, (4, 8, 8)),
}
"""By name of the family."""
