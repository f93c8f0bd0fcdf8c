"""What a call needs beside the model that it samples: a trial of its reward, and another model's scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..alignment.law import ScoreModel
from ..rewards import Reward
from .arguments import resolve_arguments

if TYPE_CHECKING:
    from .pipeline import DiamondMapPipeline


def reward_probe(
    reward: Reward | None, arguments: Mapping[str, Any], text: str, device: torch.device, needs_gradient: bool
) -> Callable[..., None]:
    """What tries the reward on one image of the size of the run, with the context that it wants."""
    size = (arguments.get("height") or 64, arguments.get("width") or 64)

    def probe(**context: Tensor) -> None:
        if reward is not None:
            reward.probe(device, size, text or "a photo", needs_gradient, **context)

    return probe


def encode_for_scores(score_model: DiamondMapPipeline | None, arguments: Mapping[str, Any]) -> ScoreModel | None:
    """The score model and its own encoding of the same prompts.

    Raises:
        ValueError: the prompts are not given as text.
    """
    if score_model is None:
        return None
    if arguments["prompt"] is None:
        raise ValueError("prompt is None, but score_model encodes prompts by itself; give the prompt as text")
    shared = ("prompt", "negative_prompt", "height", "width", "use_resolution_binning", "num_images_per_prompt")
    family = score_model.family
    taken = inspect.signature(type(family.pipeline).__call__).parameters
    given = {name: arguments[name] for name in shared if arguments.get(name) is not None and name in taken}
    return ScoreModel(family, family.encode(resolve_arguments(family, given, score_model.defaults)))
