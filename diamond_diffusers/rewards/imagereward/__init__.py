"""The reward `imagereward`: its network, its checkpoints, and the network of the `image-reward` package."""

from .reward import ImageReward

__all__ = ["ImageReward"]
