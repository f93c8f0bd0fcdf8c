"""The reward `evalmuse`, and its network."""

from .reward import EvalMuseReward

__all__ = ["EvalMuseReward"]
