"""The base class of families of rectified flow (SD3, FLUX, SANA, Qwen-Image, Lumina 2, Z-Image)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from ..core.levels import Level, RectifiedFlowPath
from ..core.model import Conditions
from .base import Family


class FlowMatchingFamily(Family):
    """A family whose noise levels are those of `x_t = (1 - t) z + t eps`; the stock timestep is `t` in thousandths."""

    path = RectifiedFlowPath()

    def timestep(self, noise_to_signal: Level) -> Tensor:
        return 1000 * self.path.time(noise_to_signal)

    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        if getattr(self.pipeline.scheduler, "_scale_factors", None):
            raise ValueError(
                f"the {type(self.pipeline.scheduler).__name__} has scale_factors, by which latents change their size "
                "from step to step; take one without"
            )
        options = {name: arguments[name] for name in ("timesteps", "sigmas") if arguments.get(name) is not None}
        options |= self.schedule_options(arguments, conditions)
        retrieve_timesteps(self.pipeline.scheduler, arguments["num_inference_steps"], self.device, **options)

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """Keywords of the scheduler's `set_timesteps` that the stock pipeline adds (`mu`, default `sigmas`)."""
        return {}

    def shifted_schedule(self, arguments: Mapping[str, Any], num_tokens: int) -> dict[str, Any]:
        """The options in FLUX's pipeline and its like: `mu`, and evenly spaced `sigmas` if none are given."""
        options: dict[str, Any] = {"mu": self.dynamic_shift(num_tokens)}
        if arguments["sigmas"] is None and not self.pipeline.scheduler.config.get("use_flow_sigmas"):
            count = arguments["num_inference_steps"]
            options["sigmas"] = np.linspace(1.0, 1 / count, count)
        return options

    def dynamic_shift(self, num_tokens: int, max_shift: float = 1.15) -> float:
        """`mu` of the timestep shift that grows with the number of image tokens.

        Args:
            num_tokens: number of tokens of one image.
            max_shift: the stock pipeline's own, for schedulers that declare none.
        """
        config = self.pipeline.scheduler.config
        return calculate_shift(
            num_tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", max_shift),
        )
