"""The stock pipeline's callback, called from the loop over particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..alignment.base import StepCallback


def step_callback(
    pipe: Any, levels: list[float], progress_bar: Any, callback: Callable[..., dict[str, Any]] | None
) -> StepCallback:
    """What a run calls after each step: advances the progress bar, and hands stock latents to the user's callback.

    Args:
        pipe: the `DiamondMapPipeline`, which the callback gets first.
        levels: of the run.
        progress_bar: of the stock pipeline.
        callback: `callback_on_step_end` of the stock `__call__`.
    """
    backbone = pipe.backbone

    def on_step(index: int, x: Tensor, step: int) -> Tensor | None:
        progress_bar.update()
        if callback is None:
            return None
        latents = backbone.to_stock(x, levels[step + 1])
        timestep = backbone.timestep(levels[step]).to(x.device, torch.float32)
        returned = callback(pipe, index, timestep, {"latents": latents}) or {}
        replaced = returned.get("latents", latents)
        # Not every stock pipeline has the property that reads this.
        if pipe.pipeline._interrupt:
            # Stock pipelines decode what they have, as it is.
            raise StopIteration(backbone.from_stock(replaced.to(x), 0.0))
        return None if replaced is latents else backbone.from_stock(replaced.to(x), levels[step + 1])

    return on_step
