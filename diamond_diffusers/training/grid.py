"""Images of a prompt that the teacher and the map draw from the same noise, in labelled rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms import functional
from torchvision.utils import make_grid

from ..posteriors.base import PosteriorSampler
from ..posteriors.diamond import DiamondPosterior
from ..posteriors.glass import GlassPosterior
from .laws import REFERENCE_STEPS, network_of

if TYPE_CHECKING:
    from ..families.posterior_map import PosteriorMap
    from .teacher import Teacher

TEACHER_ROW = f"teacher: GLASS, {REFERENCE_STEPS} steps"
MAP_ROWS = {f"map, {steps} step{'s' * (steps > 1)}": steps for steps in (1, 2, 4)}
"""Inner steps of the map from pure noise down to an image, at the inner times of `DiamondPosterior`."""
CAPTION = (
    f"Rows: the teacher, by GLASS in {REFERENCE_STEPS} steps; then the map in one, two and four steps. The images of a "
    "column begin at the same noise, and the closer a row comes to the first, the better."
)

PAPER, INK = "white", "black"
SMALLEST_FONT = 12
MARGIN = 4


def grid_drawer(
    teacher: Teacher, prompt: str, latents_shape: tuple[int, ...], count: int, seed: int
) -> Callable[[PosteriorSampler, PosteriorMap | None], Tensor]:
    """A function that draws `count` images `[count, 3, H, W]` in [0, 1] of a prompt by a sampler of one look-ahead.

    All samplers look ahead from pure noise, and from the same inner noise. There the teacher's inner flow is its own
    probability-flow ODE under guidance, which the map is distilled from. So a sample of the stock pipeline would end
    elsewhere only for its other solver, and GLASS is what the map can be compared with image by image.

    Args:
        latents_shape: shape of the latents of one image.
        seed: seed of the noise.
    """
    device = teacher.family.device
    generator = torch.Generator().manual_seed(seed)
    x, noise = (torch.randn(count, *latents_shape, generator=generator).to(device) for _ in range(2))
    conditions = teacher.conditions(teacher.features([prompt] * count))

    @torch.no_grad()
    def draw(sampler: PosteriorSampler, diamond_map: PosteriorMap | None) -> Tensor:
        network = network_of(teacher.family, conditions, diamond_map)
        latents = sampler.sample(network, x, math.inf, None, noise).samples[:, 0]
        return teacher.family.decode(latents, conditions).float().cpu()

    return draw


def teacher_row(draw: Callable[[PosteriorSampler, PosteriorMap | None], Tensor]) -> Tensor:
    """The images of the teacher."""
    return draw(GlassPosterior(REFERENCE_STEPS), None)


def map_rows(
    draw: Callable[[PosteriorSampler, PosteriorMap | None], Tensor], diamond_map: PosteriorMap
) -> dict[str, Tensor]:
    """The images of the map, by the labels of their rows."""
    return {label: draw(DiamondPosterior(1, steps), diamond_map) for label, steps in MAP_ROWS.items()}


def labelled_grid(rows: Mapping[str, Tensor]) -> Image.Image:
    """One picture of rows of images `[columns, 3, H, W]` in [0, 1], each under its label."""
    pictures = {label: functional.to_pil_image(make_grid(row, nrow=len(row))) for label, row in rows.items()}
    size = max(SMALLEST_FONT, next(iter(rows.values())).shape[-2] // 20)
    font = ImageFont.load_default(size)
    strip = size + 2 * MARGIN
    width = max(
        max(picture.width, math.ceil(font.getlength(label)) + 2 * MARGIN) for label, picture in pictures.items()
    )
    grid = Image.new("RGB", (width, sum(strip + picture.height for picture in pictures.values())), PAPER)
    draw, top = ImageDraw.Draw(grid), 0
    for label, picture in pictures.items():
        draw.text((MARGIN, top + MARGIN), label, fill=INK, font=font)
        grid.paste(picture, (0, top + strip))
        top += strip + picture.height
    return grid
