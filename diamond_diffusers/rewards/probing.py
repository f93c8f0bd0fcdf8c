"""Tries a reward on a random image, so that a broken one fails before the expensive work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from .output import RewardOutput

GRADIENT_FREE_ALIGNMENTS = "'best_of_n' or 'smc' or guidance with gradient='tilted_mean'"


class Tried(Protocol):
    """What is asked of a reward that is tried.

    Attributes:
        gave_one_number: whether the last call of its `score` returned a number of no shape.
    """

    max_batch_size: int | None
    gave_one_number: bool

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput: ...


def tried_on_a_random_image(
    reward: Tried,
    device: torch.device | str,
    image_size: tuple[int, int],
    prompt: str,
    needs_gradient: bool,
    context: Mapping[str, Tensor | float],
) -> int:
    """How many images were scored to see that a reward works; arguments and errors as of `Reward.probe`."""
    with torch.inference_mode(False), torch.set_grad_enabled(needs_gradient), differentiable_attention():
        images = random_image(device, image_size)
        if not needs_gradient:
            reward.evaluate(images, [prompt], **context)
            return 1 + _tried_on_two(reward, images, prompt, context)
        if not reward.differentiable:
            raise ValueError(
                f"Reward '{reward.name}' gives no gradients to the pixels; choose an alignment that needs none, "
                f"{GRADIENT_FREE_ALIGNMENTS}, or another reward."
            )
        total = reward.evaluate(images.requires_grad_(), [prompt], **context).total
        (gradient,) = torch.autograd.grad(total.sum(), images, allow_unused=True)
    if gradient is None or not gradient.isfinite().all():
        found = "no gradient" if gradient is None else "a gradient that is not finite"
        raise ValueError(
            f"Reward '{reward.name}' declares itself differentiable, but gives {found} to the pixels of a random "
            f"image; mend its `score`, or set `differentiable` to False."
        )
    return 1 + _tried_on_two(reward, images.detach(), prompt, context)


def _tried_on_two(reward: Tried, images: Tensor, prompt: str, context: Mapping[str, Tensor | float]) -> int:
    """Scores two images at once where one has a number of no shape, which may be the mean of any batch.

    Returns:
        How many images were scored.
    """
    if not reward.gave_one_number or reward.max_batch_size == 1:
        return 0
    twice = {
        key: torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value
        for key, value in context.items()
    }
    with torch.no_grad():
        reward.evaluate(torch.cat([images, images]), [prompt] * 2, **twice)
    return 2


def random_image(device: torch.device | str, image_size: tuple[int, int]) -> Tensor:
    """One image `[1, 3, H, W]` of uniform noise, always the same; torch's global generator stays untouched."""
    return torch.rand(1, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)
