"""How images become tensors."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import functional

from ...files.foreign_images import UNDECODABLE, why_undecodable
from ..errors import TrainingError
from .rows import Captioned

MAX_ASPECT_RATIO = 100

Prepared = tuple[Tensor | None, str]
"""An image `[3, H, W]` in [-1, 1], or None where the teacher is to draw it, and its caption."""
Prepare = Callable[[Captioned, random.Random], Prepared]
"""Turns a row into what is encoded; all its randomness is that of the generator."""


@dataclass(frozen=True)
class Preparation:
    """Turns images into tensors.

    Args:
        resolution: side of the square images, in pixels.
        center_crop, random_flip: as the options of these names.
    """

    resolution: int
    center_crop: bool = False
    random_flip: bool = False

    def __call__(self, row: Captioned, rng: random.Random) -> tuple[Tensor, str]:
        """An image `[3, resolution, resolution]` in [-1, 1], and a caption.

        Raises:
            TrainingError: the image cannot be decoded, or is a stripe; or there is no caption.
        """
        image = open_image(row)
        longer, shorter = max(image.size), min(image.size)
        if longer / shorter > MAX_ASPECT_RATIO:
            raise TrainingError(
                f"the image of {row.name} is {image.width} by {image.height} pixels, too long for a square; crop or "
                "remove it"
            )
        image = functional.resize(image, self.resolution, functional.InterpolationMode.LANCZOS)
        right, bottom = image.width - self.resolution, image.height - self.resolution
        left, top = (right // 2, bottom // 2) if self.center_crop else (rng.randint(0, right), rng.randint(0, bottom))
        image = functional.crop(image, top, left, self.resolution, self.resolution)
        if self.random_flip and rng.random() < 0.5:
            image = functional.hflip(image)
        return functional.to_tensor(image) * 2 - 1, choose_caption(row, rng)


def caption_alone(row: Captioned, rng: random.Random) -> tuple[None, str]:
    """No image and a caption of a row, for which the teacher draws one.

    Raises:
        TrainingError: the row has no caption.
    """
    return None, choose_caption(row, rng)


def open_image(row: Captioned) -> Image.Image:
    """The image of a row, in RGB, upright, on white where it is transparent.

    Raises:
        TrainingError: the image cannot be decoded.
    """
    image = row.image
    try:
        if isinstance(image, dict):
            image = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        return _opaque(ImageOps.exif_transpose(image))
    except UNDECODABLE as error:
        reason = why_undecodable(error)
        raise TrainingError(f"the image of {row.name} cannot be decoded ({reason}); remove or replace it") from error


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would cut off what is above 255 of 16 bits.
        return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def choose_caption(row: Captioned, rng: random.Random) -> str:
    """The caption of a row, or one of its captions.

    Raises:
        TrainingError: the row has no caption.
    """
    if isinstance(row.captions, str):
        return row.captions
    texts = isinstance(row.captions, Sequence) and all(isinstance(caption, str) for caption in row.captions)
    if not texts or not row.captions:
        raise TrainingError(f"the caption of {row.name} is {row.captions!r}; it must be a text or a list of texts")
    return rng.choice(list(row.captions))
