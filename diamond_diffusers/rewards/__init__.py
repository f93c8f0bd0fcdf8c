"""Rewards: `(images in [0, 1], prompts) -> one score per image`, higher is better; one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import REWARDS, available_rewards, register_reward, registered_reward

if TYPE_CHECKING:
    from .aesthetic import AestheticReward
    from .aesthetic_v1 import AestheticV1Reward
    from .base import Constraint, Reward, WeightedSum
    from .brightness import Brightness
    from .calibration import ScoreStatistics, calibrated
    from .callable_reward import CallableReward
    from .clip import CLIPReward
    from .colour import Colour
    from .composition import CompositionReward
    from .count import CountReward
    from .cyclereward import CycleReward
    from .evalmuse import EvalMuseReward
    from .expressions import RewardLike, as_reward
    from .hpsv2 import HPSv2Reward
    from .hpsv2_1 import HPSv21Reward
    from .hpsv3 import HPSv3Reward
    from .imagereward import ImageReward
    from .imagereward_package import PackageImageReward
    from .inverse_problem import InverseProblem
    from .jpeg_size import JPEGSize
    from .lpips import LPIPSReward
    from .miniature import MiniatureReward
    from .mps import MPSReward
    from .nsfw import NSFWReward
    from .object_colour import ObjectColourReward
    from .ocr import OCRReward
    from .output import RewardOutput
    from .pickscore import PickScoreReward
    from .placed import PlacedReward
    from .position import PositionReward
    from .presence import PresenceReward
    from .questions import QuestionListReward
    from .remote import RemoteReward
    from .rubric import Criterion, RubricReward
    from .sharpness import Sharpness
    from .similarity import SimilarityReward
    from .stages import StagedReward, staged
    from .symmetry import Symmetry
    from .transformed import ClippedReward, StandardisedReward
    from .unifiedreward import UnifiedReward
    from .vision_language.judge import Judge, VisionLanguageJudge
    from .vision_language.question_lists import Question
    from .vqascore import VQAScoreReward

_MODULES = {
    "AestheticReward": "aesthetic",
    "AestheticV1Reward": "aesthetic_v1",
    "Brightness": "brightness",
    "CLIPReward": "clip",
    "CallableReward": "callable_reward",
    "ClippedReward": "transformed",
    "Colour": "colour",
    "CompositionReward": "composition",
    "Constraint": "base",
    "CountReward": "count",
    "Criterion": "rubric",
    "CycleReward": "cyclereward",
    "EvalMuseReward": "evalmuse",
    "HPSv21Reward": "hpsv2_1",
    "HPSv2Reward": "hpsv2",
    "HPSv3Reward": "hpsv3",
    "ImageReward": "imagereward",
    "InverseProblem": "inverse_problem",
    "JPEGSize": "jpeg_size",
    "Judge": "vision_language.judge",
    "LPIPSReward": "lpips",
    "MPSReward": "mps",
    "MiniatureReward": "miniature",
    "NSFWReward": "nsfw",
    "OCRReward": "ocr",
    "ObjectColourReward": "object_colour",
    "PackageImageReward": "imagereward_package",
    "PickScoreReward": "pickscore",
    "PlacedReward": "placed",
    "PositionReward": "position",
    "PresenceReward": "presence",
    "Question": "vision_language.question_lists",
    "QuestionListReward": "questions",
    "RemoteReward": "remote",
    "Reward": "base",
    "RewardLike": "expressions",
    "RewardOutput": "output",
    "RubricReward": "rubric",
    "ScoreStatistics": "calibration",
    "Sharpness": "sharpness",
    "SimilarityReward": "similarity",
    "StagedReward": "stages",
    "StandardisedReward": "transformed",
    "Symmetry": "symmetry",
    "UnifiedReward": "unifiedreward",
    "VQAScoreReward": "vqascore",
    "VisionLanguageJudge": "vision_language.judge",
    "WeightedSum": "base",
    "as_reward": "expressions",
    "calibrated": "calibration",
    "staged": "stages",
}
"""Where each class is. It is imported when it is asked for, since the libraries that some need take seconds."""

__all__ = [
    "REWARDS",
    "AestheticReward",
    "AestheticV1Reward",
    "Brightness",
    "CLIPReward",
    "CallableReward",
    "ClippedReward",
    "Colour",
    "CompositionReward",
    "Constraint",
    "CountReward",
    "Criterion",
    "CycleReward",
    "EvalMuseReward",
    "HPSv2Reward",
    "HPSv3Reward",
    "HPSv21Reward",
    "ImageReward",
    "InverseProblem",
    "JPEGSize",
    "Judge",
    "LPIPSReward",
    "MPSReward",
    "MiniatureReward",
    "NSFWReward",
    "OCRReward",
    "ObjectColourReward",
    "PackageImageReward",
    "PickScoreReward",
    "PlacedReward",
    "PositionReward",
    "PresenceReward",
    "Question",
    "QuestionListReward",
    "RemoteReward",
    "Reward",
    "RewardLike",
    "RewardOutput",
    "RubricReward",
    "ScoreStatistics",
    "Sharpness",
    "SimilarityReward",
    "StagedReward",
    "StandardisedReward",
    "Symmetry",
    "UnifiedReward",
    "VQAScoreReward",
    "VisionLanguageJudge",
    "WeightedSum",
    "as_reward",
    "available_rewards",
    "calibrated",
    "register_reward",
    "registered_reward",
    "staged",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
