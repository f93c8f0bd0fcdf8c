"""Rewards that cost nothing in the place of others, with the properties that decide how a run asks them."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...rewards import Reward, as_reward
from ...rewards.base import CompositeReward
from ...rewards.callable_reward import CallableReward
from ...rewards.expressions import parse_expression
from ...rewards.registry import Registered, registered_reward
from ...rewards.stages import StagedReward

PROPERTIES = (
    "differentiable",
    "reads_prompts",
    "max_batch_size",
    "default_reward_scale",
    "is_free",
    "is_dear",
    "example_prompt",
)
"""What a stand-in takes over."""


class StandInReward(Reward):
    """The mean of the pixels under the name and with the properties of another reward, which is never asked.

    Args:
        name: of the other.
        properties: of the other, by their names in `PROPERTIES`.

    Attributes:
        num_tried: images that it has scored in trials.
    """

    def __init__(self, name: str, properties: Mapping[str, Any]) -> None:
        self.name = name
        vars(self).update(properties)
        self.num_tried = 0

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.float().mean((1, 2, 3))

    def probe(
        self,
        device: torch.device | str = "cpu",
        image_size: tuple[int, int] = (64, 64),
        prompt: str | None = None,
        needs_gradient: bool = False,
        **context: Tensor | float,
    ) -> int:
        """See `Reward.probe`; the images are counted."""
        count = super().probe(device, image_size, prompt, needs_gradient, **context)
        self.num_tried += count
        return count


def stand_in_reward(expression: str) -> Reward:
    """A reward in the place of that of an expression; none of its terms is loaded.

    Raises:
        ValueError: the expression cannot be read, or names an unknown reward.
    """
    names = [name for _, name in parse_expression(expression)]
    return as_reward(expression, {name: _stand_in(name, registered_reward(name)) for name in names})


def num_tried(reward: Reward | None) -> int:
    """How many images the trials of a reward of stand-ins have scored, as `Reward.probe` counts them."""
    return max((leaf.num_tried for leaf in _leaves(reward)), default=0)


def _leaves(reward: Reward | None) -> Iterator[StandInReward]:
    if isinstance(reward, StandInReward):
        yield reward
    for part in getattr(reward, "rewards", ()):
        yield from _leaves(part)


def _stand_in(name: str, registered: Registered | Reward) -> Reward:
    if isinstance(registered, type):
        # What is declared by a property is known of a loaded reward alone.
        declared = {key: inspect.getattr_static(registered, key) for key in PROPERTIES}
        return StandInReward(name, {key: value for key, value in declared.items() if not hasattr(value, "__get__")})
    if isinstance(registered, CompositeReward):
        made = copy.copy(registered)
        made.rewards = [_stand_in(part.name, part) for part in registered.rewards]
        if isinstance(made, StagedReward):
            made.first = made.rewards[0]
            stages = zip(made.later, made.rewards[1:], strict=True)
            made.later = tuple(replace(stage, reward=reward) for stage, reward in stages)
        return made
    reward = registered if isinstance(registered, Reward) else CallableReward(registered, name)
    return StandInReward(reward.name, {key: getattr(reward, key) for key in PROPERTIES})
