"""The mirror symmetry of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..core.tensors import at_least_float32
from .formulas import Formula
from .registry import register_reward


@register_reward("symmetry")
class Symmetry(Formula):
    """Minus the mean absolute difference between the image and its mirror image: 0 if left and right are alike.

    Args:
        name: name under which the scores are reported.
    """

    source = "mean absolute difference"
    default_reward_scale = 50.0

    def __init__(self, *, name: str = "symmetry") -> None:
        self.name = name

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Symmetries `[B]`, -1 to 0, of images `[B, 3, H, W]` in [0, 1]."""
        images = at_least_float32(images)
        return -(images - images.flip(-1)).abs().mean((1, 2, 3))
