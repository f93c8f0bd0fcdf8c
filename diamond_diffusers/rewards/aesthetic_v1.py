"""LAION's first aesthetic predictor: a linear rating of the image alone, read off its CLIP features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .clip.head import CLIPHeadReward
from .registry import register_reward


@register_reward("aesthetic_v1")
class AestheticV1Reward(CLIPHeadReward):
    """LAION's first aesthetic predictor: the mean human rating of the image, about 0 to 10. Prompts are not read.

    Arguments and errors are those of `CLIPHeadReward`.

    Source: LAION 2022, github.com/LAION-AI/aesthetic-predictor.
    """

    licence = "MIT"
    source = "github.com/LAION-AI/aesthetic-predictor"
    default_name = "aesthetic_v1"
    url = "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"
    sha256 = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"

    def build_head(self, weights: Mapping[str, Tensor]) -> nn.Linear:
        """See `CLIPHeadReward`."""
        return nn.Linear(weights["weight"].shape[-1] if "weight" in weights else 768, 1)
