"""The scale of the reward, of one for all images or of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor


def scale_of_each_image(reward_scale: float | Tensor, num_images: int) -> Tensor:
    """The scale of each image, `[B]` in float64 on the CPU; arguments and errors as of `Law`."""
    if not isinstance(reward_scale, Tensor) or reward_scale.ndim == 0:
        number = reward_scale.item() if isinstance(reward_scale, Tensor) else reward_scale
        check_reward_scale(number)
        return torch.full((num_images,), float(number), dtype=torch.float64)
    if reward_scale.shape != (num_images,):
        raise ValueError(
            f"reward_scale is of shape {list(reward_scale.shape)}, but there are {num_images} images; give one for each"
        )
    scales = reward_scale.detach().to("cpu", torch.float64)
    check_reward_scales(scales.tolist())
    return scales


def check_reward_scales(scales: Sequence[float]) -> None:
    """Raises a `ValueError` where one of several is wrong, or where only some are 0."""
    for position, scale in enumerate(scales):
        check_reward_scale(scale, f"reward_scale[{position}]")
    if any(scales) and not all(scales):
        # Methods draw no look-aheads for these, and so other random numbers.
        raise ValueError(
            f"reward_scale[{list(scales).index(0)}] is 0 and others are not, but images of scale 0 are plain samples, "
            "which are drawn otherwise; give them a call of their own"
        )


def check_reward_scale(reward_scale: float, name: str = "reward_scale") -> None:
    """Raises a `ValueError` for one that is no finite number, or none in float32, in which rewards are scaled."""
    if not isinstance(reward_scale, Real) or not math.isfinite(reward_scale):
        raise ValueError(f"{name} is {reward_scale!r}; give a finite number (a negative one lowers the reward)")
    largest = torch.finfo(torch.float32).max
    if abs(reward_scale) > largest:
        raise ValueError(f"{name} is {float(reward_scale):g}; give at most {largest:.2g}, the largest in float32")
