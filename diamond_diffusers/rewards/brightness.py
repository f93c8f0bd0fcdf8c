"""The mean luminance of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .formulas import Formula, luminance
from .registry import register_reward


@register_reward("brightness")
class Brightness(Formula):
    """Mean luminance of the image, 0 (black) to 1 (white).

    Args:
        name: name under which the scores are reported.
    """

    source = "luminance of ITU-R BT.601"
    default_reward_scale = 50.0

    def __init__(self, *, name: str = "brightness") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean luminances `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        return luminance(images).mean((1, 2, 3))
