"""Rewards: `(images in [0, 1], prompts) -> one score per image`, higher is better."""

from .aesthetic import AestheticReward, AestheticV1Reward
from .base import Reward, RewardOutput, WeightedSum
from .callable_reward import CallableReward
from .clip import CLIPReward
from .hps import HPSv2Reward, HPSv21Reward
from .imagereward import ImageReward
from .imagereward_package import PackageImageReward
from .inverse_problem import InverseProblem
from .miniature import MiniatureReward
from .pickscore import PickScoreReward
from .placed import PlacedReward
from .references import LPIPSReward, SimilarityReward
from .registry import RewardLike, as_reward, available_rewards, register_reward, registered_reward
from .simple import Brightness, Colour, JPEGSize, Sharpness, Symmetry
from .transformed import ClippedReward, StandardisedReward, TemperedReward
from .vqascore import VQAScoreReward

__all__ = [
    "AestheticReward",
    "AestheticV1Reward",
    "Brightness",
    "CLIPReward",
    "CallableReward",
    "ClippedReward",
    "Colour",
    "HPSv2Reward",
    "HPSv21Reward",
    "ImageReward",
    "InverseProblem",
    "JPEGSize",
    "LPIPSReward",
    "MiniatureReward",
    "PackageImageReward",
    "PickScoreReward",
    "PlacedReward",
    "Reward",
    "RewardLike",
    "RewardOutput",
    "Sharpness",
    "SimilarityReward",
    "StandardisedReward",
    "Symmetry",
    "TemperedReward",
    "VQAScoreReward",
    "WeightedSum",
    "as_reward",
    "available_rewards",
    "register_reward",
    "registered_reward",
]
