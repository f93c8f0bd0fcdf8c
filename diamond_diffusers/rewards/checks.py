"""The checks that images and prompts of every call of a reward pass, with the sentences that explain what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ..core.deferred import require

RANGE_TOLERANCE = 1e-3
"""How far outside [0, 1] a pixel may be: decoders round."""


def check_batch(name: str, images: Tensor, prompts: Sequence[str]) -> None:
    """Checks images and prompts of the reward `name`.

    Raises:
        TypeError: `images` is not a floating tensor, or `prompts` is no list of strings.
        ValueError: the shape or the range of `images`, or the number of `prompts`, is wrong.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = f"dtype {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"Reward '{name}' got images of {found}; give a floating tensor in [0, 1].")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"Reward '{name}' got images of shape {list(images.shape)}; give [B, 3, H, W], in RGB.")
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(f"Reward '{name}' got prompts={prompts!r}; give a list of strings, one per image.")
    if len(prompts) != len(images):
        raise ValueError(
            f"Reward '{name}' got {len(prompts)} prompts for {len(images)} images; give one prompt per image."
        )
    if images.numel() == 0:
        raise ValueError(f"Reward '{name}' got images of shape {list(images.shape)}; give at least one pixel.")
    extremes = torch.stack(images.detach().aminmax())

    def fault() -> ValueError:
        lowest, highest = extremes.tolist()
        return ValueError(
            f"Reward '{name}' got images from {lowest:.4g} to {highest:.4g}; give values in [0, 1], such as "
            "`(x / 2 + 0.5).clamp(0, 1)` of images in [-1, 1]."
        )

    # NaN is not within it.
    require((extremes >= -RANGE_TOLERANCE) & (extremes <= 1 + RANGE_TOLERANCE), fault)


def refuses_inference_tensors(error: RuntimeError) -> bool:
    """Whether torch raised this error because it cannot differentiate through a tensor of `torch.inference_mode()`."""
    return "Inference tensors cannot be saved for backward" in str(error)


@contextmanager
def naming_inference_tensors(name: str) -> Iterator[None]:
    """Context that turns torch's error about inference tensors into a `ValueError` that names the reward `name`."""
    try:
        yield
    except RuntimeError as error:
        if not refuses_inference_tensors(error):
            raise
        raise ValueError(
            f"Reward '{name}' holds tensors that were made under torch.inference_mode(), through which nothing can be "
            "differentiated; make it outside, or take an alignment that needs no gradient."
        ) from error
