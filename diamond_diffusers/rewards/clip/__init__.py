"""The reward `clip`, and the code that all rewards with a CLIP share."""

from .base import CLIPBasedReward
from .reward import CLIPReward

__all__ = ["CLIPBasedReward", "CLIPReward"]
