"""Mild damage to images, as autoencoders and early denoising leave it, so that a scorer learns to look through it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torchvision.transforms.functional import gaussian_blur


def degrade(images: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Blurs, coarsens, fades and speckles images, each by a random amount of its own.

    Args:
        images: `[B, 3, H, W]` in [0, 1].
        strength: from 0 (images unchanged) to 1.
        generator: of the amounts and the noise; torch's own by default.
    """
    blurred = gaussian_blur(images, [7, 7], [1.3, 1.3])
    coarse = interpolate(avg_pool2d(images, 2), scale_factor=2, mode="bilinear")
    images = images.lerp(blurred, _amounts(images, strength, generator))
    images = images.lerp(coarse, _amounts(images, strength, generator))
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 - 0.25 * (2 * _amounts(images, strength, generator) - strength))
    noise = torch.randn(images.shape, generator=generator) * 0.08 * _amounts(images, strength, generator)
    return (images + noise).clamp(0, 1)


def _amounts(images: Tensor, strength: float, generator: torch.Generator | None) -> Tensor:
    # Squared, so that most images are damaged only a little.
    return strength * torch.rand(len(images), 1, 1, 1, generator=generator).square()
