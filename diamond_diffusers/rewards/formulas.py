"""The base class of rewards that are formulas, and need no weights and no downloads."""

from __future__ import annotations

import io

from PIL.Image import Image
from torch import Tensor

from ..core.tensors import at_least_float32
from .base import Reward

# ITU-R BT.601, the weights of JPEG's luminance.
LUMINANCE = (0.299, 0.587, 0.114)


class Formula(Reward):
    """A reward that computes its scores from the pixels alone."""

    licence = "Apache-2.0"
    size = "none"
    is_free = True
    reads_prompts = False


def luminance(images: Tensor) -> Tensor:
    """Luminance `[B, 1, H, W]` of images `[B, 3, H, W]`, both in [0, 1]; in float32 at least."""
    images = at_least_float32(images)
    return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


def encode_jpeg(image: Image, quality: int) -> bytes:
    """The image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def check_jpeg_quality(quality: int) -> None:
    """Raises a `ValueError` if `quality` is no quality of JPEG."""
    if not 1 <= quality <= 95:
        raise ValueError(f"quality={quality} is no JPEG quality; give 1 to 95.")
