"""Image processors of transformers, through which gradients pass where they work on tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .preprocessing import images_to_pil
from .probing import random_image


def keeps_graph(image_processor: Any) -> bool:
    """Whether an image processor keeps the graph of a tensor."""
    with torch.inference_mode(False), torch.enable_grad():
        levels = 255 * random_image("cpu", (64, 64)).requires_grad_()
        try:
            outputs = image_processor(list(levels), return_tensors="pt")
        except (RuntimeError, TypeError, ValueError):
            # Processors on PIL and numpy refuse tensors that require gradients.
            return False
    return any(isinstance(value, Tensor) and value.requires_grad for value in outputs.values())


def processed(process: Callable[[Any], Mapping[str, Tensor]], images: Tensor, keeps: bool) -> dict[str, Tensor]:
    """What a processor makes of the 8-bit images, with the graph of the images where it keeps one.

    The gradient passes the rounding to 8 bits as if it were not there.

    Args:
        process: maps PIL images, or levels `[B, 3, H, W]` from 0 to 255, to what a model takes.
        images: `[B, 3, H, W]` in [0, 1], float32 or wider.
        keeps: as `keeps_graph` has found.
    """
    if not keeps:
        return dict(process(images_to_pil(images)))
    levels = images * 255
    inputs = dict(process(levels.detach().round().byte()))
    if images.requires_grad:
        for key, value in process(levels).items():
            if value.requires_grad:
                # In this order, the values stay those of the 8-bit images to the last bit.
                inputs[key] = inputs[key] + (value - value.detach())
    return inputs
