"""Diamond Maps around tiny random models of every family that can have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diamond_diffusers.core.model import Conditions
from diamond_diffusers.families.base import Family
from diamond_diffusers.families.registry import family_of
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.pipelines.arguments import resolve_arguments

from ..families.family import PROMPTS
from ..families.tiny_flux import build_tiny_flux
from ..families.tiny_pixart_sigma import build_tiny_pixart_sigma
from ..families.tiny_sana import build_tiny_sana
from ..families.tiny_stable_diffusion import build_tiny_sdxl, build_tiny_stable_diffusion
from ..families.tiny_stable_diffusion_3 import build_tiny_stable_diffusion_3


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


def tiny_family(family: str) -> Family:
    return family_of(TINY_MODELS[family].build())


@torch.no_grad()
def encode(family: Family) -> Conditions:
    """Two prompts under classifier-free guidance."""
    given = {**TINY_MODELS[family.name].call, "prompt": PROMPTS}
    return family.encode(resolve_arguments(family, given, {}))


@dataclass(frozen=True)
class Inputs:
    """Two rows of arguments of a map."""

    xbar: Tensor
    s: Tensor
    r: Tensor
    x: Tensor
    noise_to_signal: Tensor
    conditions: Conditions

    def denoised(self, diamond_map: DiamondMap) -> Tensor:
        return diamond_map.mean_denoiser(self.xbar, self.s, self.r, self.x, self.noise_to_signal, self.conditions)


def draw_inputs(family: Family) -> Inputs:
    generator = torch.Generator().manual_seed(5)
    shape = (2, *TINY_MODELS[family.name].shape)
    xbar, x = (torch.randn(shape, generator=generator) for _ in range(2))
    s, r, level = (torch.tensor(values, dtype=torch.float64) for values in ([1.0, 0.6], [0.0, 0.3], [2.0, 0.7]))
    return Inputs(xbar, s, r, x, level, encode(family))


@torch.no_grad()
def perturb(diamond_map: DiamondMap, scale: float = 0.1) -> None:
    """Gives every trained parameter a value that shows."""
    generator = torch.Generator().manual_seed(6)
    for parameter in diamond_map.trained_parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator)
