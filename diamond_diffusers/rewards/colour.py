"""The colourfulness of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.tensors import at_least_float32
from .formulas import Formula
from .registry import register_reward


@register_reward("colour")
class Colour(Formula):
    """Colourfulness of the image: spread and mean of its opponent colours; 0 for grey, about 0.4 for vivid images.

    This is the published measure for pixels in [0, 255], divided by 255.

    Args:
        name: name under which the scores are reported.

    Source: Hasler and Süsstrunk 2003, "Measuring colourfulness in natural images", metric M3.
    """

    source = "Hasler and Süsstrunk 2003"
    default_reward_scale = 50.0

    def __init__(self, *, name: str = "colour") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Colourfulness `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        red, green, blue = at_least_float32(images).flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue])
        spread = opponents.var(-1, correction=0).sum(0)
        mean = opponents.mean(-1).square().sum(0)
        return _sqrt(spread) + 0.3 * _sqrt(mean)


def _sqrt(x: Tensor) -> Tensor:
    # The slope at exactly 0, which a grey image reaches, would be infinite.
    return (x + 1e-12).sqrt()
