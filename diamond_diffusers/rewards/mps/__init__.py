"""The reward `mps`, and its network."""

from .reward import MPSReward

__all__ = ["MPSReward"]
