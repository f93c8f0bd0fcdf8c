"""The reward `hpsv3`, its network and the instruction that it was trained with."""

from .reward import HPSv3Reward

__all__ = ["HPSv3Reward"]
