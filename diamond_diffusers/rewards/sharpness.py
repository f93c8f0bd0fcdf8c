"""The sharpness of the image."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .formulas import Formula, luminance
from .registry import register_reward


@register_reward("sharpness")
class Sharpness(Formula):
    """Variance of the Laplacian of the luminance: 0 for a flat image, higher the more fine detail there is.

    It counts single pixels, so compare images of one size, and expect noise to score high.

    Args:
        name: name under which the scores are reported.

    Source: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".
    """

    source = "Pech-Pacheco et al. 2000"
    default_reward_scale = 500.0

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
