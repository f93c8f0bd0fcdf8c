"""The reward `clip`, and what all rewards share that look at images through a CLIP."""

from .base import CLIPBasedReward
from .reward import CLIPReward

__all__ = ["CLIPBasedReward", "CLIPReward"]
