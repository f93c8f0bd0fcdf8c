"""Diamond Maps around tiny random models of every family that can have one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.zoo.tiny_models import TINY_MODELS
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.families.base import Family
from diamond_diffusers.families.registry import family_of
from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.pipelines.arguments import resolve_arguments

from ..families.family import PROMPTS


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
