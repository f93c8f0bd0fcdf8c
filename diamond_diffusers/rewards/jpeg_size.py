"""The size of the image as a JPEG file."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .formulas import Formula, check_jpeg_quality, encode_jpeg
from .preprocessing import images_to_pil
from .registry import register_reward


@register_reward("jpeg_size")
class JPEGSize(Formula):
    """Size of the image as a JPEG file in units of 1000 bytes; a negative weight asks for compressible images.

    Args:
        quality: quality of the JPEG file, 1 to 95.
        name: name under which the scores are reported.

    Raises:
        ValueError: `quality` is out of range.

    Source: Black et al. 2023, "Training Diffusion Models with Reinforcement Learning", section 5.1.
    """

    differentiable = False
    source = "Black et al. 2023, arXiv:2305.13301"
    default_reward_scale = 0.1

    def __init__(self, quality: int = 95, *, name: str = "jpeg_size") -> None:
        check_jpeg_quality(quality)
        self.quality = quality
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """File sizes `[B]` in kB of images `[B, 3, H, W]` in [0, 1]."""
        sizes = [len(encode_jpeg(image, self.quality)) / 1000 for image in images_to_pil(images)]
        return torch.tensor(sizes, device=images.device)
