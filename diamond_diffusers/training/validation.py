"""Images that the map draws while it is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional
from torchvision.utils import make_grid

from ..maps.diamond_map import DiamondMap
from .teacher import Teacher

if TYPE_CHECKING:
    from .options.records import Options

DEFAULT_PROMPT = "a photo of an astronaut riding a horse"
MINIATURE_PROMPT = "a red star left of a blue ring"

ROWS = {"one evaluation": 1, "four evaluations": 4}
"""Rows of the grid: inner steps of the map from pure noise down to an image."""


@torch.no_grad()
def validation_images(
    diamond_map: DiamondMap, teacher: Teacher, prompt: str, latents_shape: tuple[int, ...], count: int, seed: int
) -> Tensor:
    """Images `[rows, count, 3, H, W]` in [0, 1] of a prompt that the map draws in few evaluations; see `ROWS`.

    Args:
        latents_shape: shape of the latents of one image.
        seed: seed of the noise, which all rows share.
    """
    device = teacher.family.device
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(count, *latents_shape, generator=generator).to(device) for _ in range(2))
    conditions = teacher.conditions(teacher.features([prompt] * count))
    rows = []
    for num_steps in ROWS.values():
        xbar = noise
        for step in range(num_steps):
            s, r = 1 - step / num_steps, 1 - (step + 1) / num_steps
            xbar = diamond_map(xbar, s, r, x, math.inf, conditions)
        rows.append(teacher.family.decode(xbar, conditions).float())
    return torch.stack(rows)


def prompt_of_card(options: Options) -> str:
    """The prompt of the model card's samples."""
    if options.validation.validation_prompt is not None:
        return options.validation.validation_prompt
    return MINIATURE_PROMPT if options.model.is_miniature else DEFAULT_PROMPT


@contextmanager
def averaged(average: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Context in which the parameters are their average, if there is one."""
    if average is None:
        yield
        return
    average.store(parameters)
    average.copy_to(parameters)
    try:
        yield
    finally:
        average.restore(parameters)


def image_grid(images: Tensor) -> Image.Image:
    """One picture of images `[rows, columns, 3, H, W]` in [0, 1]."""
    grid = make_grid(images.flatten(0, 1).cpu(), nrow=images.shape[1])
    return functional.to_pil_image(grid)
