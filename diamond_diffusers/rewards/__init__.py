"""Rewards: `(images in [0, 1], prompts) -> one score per image`, higher is better."""

from .base import Reward, RewardOutput, WeightedSum
from .callable_reward import CallableReward
from .clip import CLIPReward
from .miniature import MiniatureReward
from .registry import RewardLike, as_reward, available_rewards, register_reward, registered_reward

__all__ = [
    "CLIPReward",
    "CallableReward",
    "MiniatureReward",
    "Reward",
    "RewardLike",
    "RewardOutput",
    "WeightedSum",
    "as_reward",
    "available_rewards",
    "register_reward",
    "registered_reward",
]
