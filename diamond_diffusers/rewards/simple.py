"""Rewards that are formulas: no weights, no downloads."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn

from .base import Reward
from .clip_tower import at_least_float32
from .preprocessing import images_to_pil
from .registry import register_reward

# ITU-R BT.601, the weights of JPEG's luminance.
LUMINANCE = (0.299, 0.587, 0.114)


class Formula(Reward):
    """What the rewards of this file have in common."""

    licence = "Apache-2.0"
    size = "none"
    reads_prompts = False


@register_reward("jpeg_size", aliases=("jpeg-size",))
class JPEGSize(Formula):
    """Size of the image as a JPEG file in units of 1000 bytes; a negative weight asks for compressible images.

    Args:
        quality: of the JPEG, 1 to 95.
        name: under which the scores are reported.

    Raises:
        ValueError: `quality` is out of range.

    Source: Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", section 5.1.
    """

    differentiable = False
    source = "Black et al. 2023, arXiv:2305.13301"

    def __init__(self, quality: int = 95, *, name: str = "jpeg_size") -> None:
        check_jpeg_quality(quality)
        self.quality = quality
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """File sizes `[B]` in kB of images `[B, 3, H, W]` in [0, 1]."""
        sizes = [len(encode_jpeg(image, self.quality)) / 1000 for image in images_to_pil(images)]
        return torch.tensor(sizes, device=images.device)


@register_reward("brightness")
class Brightness(Formula):
    """Mean luminance of the image, 0 (black) to 1 (white).

    Args:
        name: under which the scores are reported.
    """

    source = "luminance of ITU-R BT.601"

    def __init__(self, *, name: str = "brightness") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean luminances `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        return luminance(images).mean((1, 2, 3))


@register_reward("colour")
class Colour(Formula):
    """Colourfulness of the image: spread and mean of its opponent colours; 0 for grey, about 0.4 for vivid images.

    This is the published measure for pixels in [0, 255], divided by 255.

    Args:
        name: under which the scores are reported.

    Source: Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", metric M3.
    """

    source = "Hasler and Süsstrunk 2003"

    def __init__(self, *, name: str = "colour") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Colourfulness `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        red, green, blue = at_least_float32(images).flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue])
        spread = opponents.var(-1, correction=0).sum(0)
        mean = opponents.mean(-1).square().sum(0)
        return _sqrt(spread) + 0.3 * _sqrt(mean)


@register_reward("sharpness")
class Sharpness(Formula):
    """Variance of the Laplacian of the luminance: 0 for a flat image, higher the more fine detail there is.

    It counts single pixels, so compare images of one size, and expect noise to score high.

    Args:
        name: under which the scores are reported.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """

    source = "Pech-Pacheco et al. 2000"

    def __init__(self, *, name: str = "sharpness") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Variances `[B]` over the inner pixels of images `[B, 3, H, W]` in [0, 1].

        Raises:
            ValueError: the images are smaller than 3 by 3 pixels.
        """
        if min(images.shape[-2:]) < 3:
            raise ValueError(
                f"Reward '{self.name}' got images of shape {list(images.shape)}; give at least 3 by 3 pixels."
            )
        grey = luminance(images)
        laplacian = grey.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])
        return nn.functional.conv2d(grey, laplacian[None, None]).var((1, 2, 3), correction=0)


@register_reward("symmetry")
class Symmetry(Formula):
    """Minus the mean absolute difference of the image and its mirror image: 0 where left and right are alike.

    Args:
        name: under which the scores are reported.
    """

    source = "mean absolute difference"

    def __init__(self, *, name: str = "symmetry") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Symmetries `[B]`, -1 to 0, of images `[B, 3, H, W]` in [0, 1]."""
        return -(images - images.flip(-1)).abs().mean((1, 2, 3))


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
    """Raises ValueError where `quality` is not one of JPEG's."""
    if not 1 <= quality <= 95:
        raise ValueError(f"quality={quality} is no JPEG quality; give 1 to 95.")


def _sqrt(x: Tensor) -> Tensor:
    # The slope at exactly 0, which a grey image reaches, would be infinite.
    return (x + 1e-12).sqrt()
