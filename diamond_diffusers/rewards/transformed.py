"""Rewards on another scale, standardised or clipped. They also report the scores of the original reward."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ..core.pending import Pending
from .base import CompositeReward, Reward
from .output import RewardOutput


class TransformedReward(CompositeReward):
    """A function of another reward's score. Subclasses define it in `transform`.

    Args:
        reward: the reward to transform.
        name: name of the transformed reward.
    """

    def __init__(self, reward: Reward, name: str) -> None:
        super().__init__([reward], name)

    @abstractmethod
    def transform(self, scores: Tensor) -> Tensor:
        """Maps scores `[B]` to scores `[B]`, differentiably."""

    @property
    def is_concurrent(self) -> bool:  # type: ignore[override]
        """Whether the original reward is."""
        return self.rewards[0].is_concurrent

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The transformed total, and the scores of the original reward. See `Reward.evaluate`."""
        return self._transformed(self.rewards[0].evaluate(images, prompts, **context))

    def begin(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> Pending[RewardOutput]:
        """See `Reward.begin`."""
        return self.rewards[0].begin(images, prompts, **context).then(self._transformed)

    def _transformed(self, output: RewardOutput) -> RewardOutput:
        return RewardOutput(self.transform(output.total), output.terms, output.violation)


class StandardisedReward(TransformedReward):
    """A standardised reward, `(score - mean) / standard_deviation`. Use it to add rewards of different scales.

    Args:
        reward: the reward to standardise.
        mean: mean of its scores.
        standard_deviation: standard deviation of its scores, positive.

    Raises:
        ValueError: `mean` is not finite, or `standard_deviation` not a positive number.
    """

    def __init__(self, reward: Reward, mean: float, standard_deviation: float) -> None:
        if not math.isfinite(mean):
            raise ValueError(f"mean={mean} of reward '{reward.name}' is not finite; give a finite number.")
        if not (math.isfinite(standard_deviation) and standard_deviation > 0):
            raise ValueError(
                f"standard_deviation={standard_deviation} of reward '{reward.name}' is not a positive number; give one."
            )
        super().__init__(reward, f"standardised({reward.name})")
        self.mean = mean
        self.standard_deviation = standard_deviation

    @classmethod
    def fitted(cls, reward: Reward, images: Tensor, prompts: Sequence[str]) -> Self:
        """Takes mean and standard deviation from the scores of images `[B, 3, H, W]` in [0, 1] and `B` prompts.

        Raises:
            ValueError: there are fewer than two images, or all scores are equal.
        """
        if len(images) < 2:
            raise ValueError(f"A standard deviation needs more than {len(images)} images; give at least two.")
        with torch.no_grad():
            scores = reward(images, prompts)
        return cls(reward, scores.mean().item(), scores.std().item())

    @property
    def default_reward_scale(self) -> float | None:  # type: ignore[override]
        """That of the original reward, in deviations."""
        scale = self.rewards[0].default_reward_scale
        return None if scale is None else scale * self.standard_deviation

    def transform(self, scores: Tensor) -> Tensor:
        """`(scores - mean) / standard_deviation`."""
        return (scores - self.mean) / self.standard_deviation


class ClippedReward(TransformedReward):
    """A reward kept within bounds, so that no image scores above `highest`. Outside of the bounds the gradient is zero.

    Args:
        reward: the reward to clip.
        lowest: bound from below.
        highest: bound from above.

    Raises:
        ValueError: `lowest` is not below `highest`.
    """

    def __init__(self, reward: Reward, lowest: float = -math.inf, highest: float = math.inf) -> None:
        if not lowest < highest:
            raise ValueError(
                f"Reward '{reward.name}' got the bounds lowest={lowest} and highest={highest}; give lowest < highest."
            )
        super().__init__(reward, f"clipped({reward.name})")
        self.lowest = lowest
        self.highest = highest

    @property
    def default_reward_scale(self) -> float | None:  # type: ignore[override]
        """That of the original reward."""
        return self.rewards[0].default_reward_scale

    def transform(self, scores: Tensor) -> Tensor:
        """`min(max(scores, lowest), highest)`."""
        return scores.clamp(self.lowest, self.highest)
