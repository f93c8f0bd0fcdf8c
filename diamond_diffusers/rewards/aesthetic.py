"""LAION's improved aesthetic predictor: a rating of the image alone, read off its CLIP features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .clip.head import CLIPHeadReward
from .registry import register_reward


class AestheticMLP(nn.Module):
    """The published head of version 2: a multilayer perceptron without activations, with dropout in training only.

    Args:
        width: width of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Ratings `[B, 1]` of unit features `[B, width]`."""
        return self.layers(features)


@register_reward("aesthetic")
class AestheticReward(CLIPHeadReward):
    """The improved aesthetic predictor: the mean human rating of the image, about 1 to 10. Prompts are not read.

    Arguments and errors are those of `CLIPHeadReward`.

    Source: Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor.
    """

    licence = "Apache-2.0"
    source = "github.com/christophschuhmann/improved-aesthetic-predictor"
    default_name = "aesthetic"
    url = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac+logos+ava1-l14-linearMSE.pth"
    sha256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"

    def build_head(self, weights: Mapping[str, Tensor]) -> AestheticMLP:
        """See `CLIPHeadReward`."""
        return AestheticMLP(768)
