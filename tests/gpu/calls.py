"""Calls of tiny pipelines of every family on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline, Guidance, Guide

from ..families.all_families import family_of
from ..families.family import PROMPTS, brightness, generators

PATHWISE = {"alignment": Guidance(guide=Guide("pathwise")), "reward": brightness}
"""A call that differentiates network, decoder and reward."""


def fresh(family: str, device: torch.device, dtype: torch.dtype = torch.float32) -> DiamondMapPipeline:
    return DiamondMapPipeline.from_pipe(family_of(family).build().to(device, dtype))


def images(
    pipe: DiamondMapPipeline | DiffusionPipeline,
    family: str,
    prompts: Sequence[str] = PROMPTS,
    generator: Any = None,
    **call: Any,
) -> Tensor:
    """Of a call of the wrapped or of the stock pipeline, from the generators of the images, on the CPU."""
    given = {**family_of(family).call, "output_type": "pt", **call}
    return pipe(list(prompts), generator=generator or generators(len(prompts)), **given).images.cpu()


def assert_near(images: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(images, expected, atol=tolerance, rtol=0)
