"""SANA-Sprint: a continuous-time consistency model of SANA's latents (arXiv 2503.09641)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_1024_BIN
from torch import Tensor

from ..core.levels import Level, RectifiedFlowPath, as_level
from ..core.model import Conditions
from ..core.tensors import sent
from .registry import register_family
from .resolution_bins import BinnedFamily
from .stock_call import call_stock, masked_features, one_row_each


@register_family("SanaSprintPipeline")
class SanaSprintFamily(BinnedFamily):
    """Reads a `SanaSprintPipeline` with its `SCMScheduler`: a flow map, no denoiser.

    The stock loop keeps latents times `sigma_data` on the trigonometric path `x_t = cos t z + sin t eps`, so on plain
    latents `kappa = tan t`. Around the network it changes to rectified flow and back, with
    `s = sin t / (sin t + cos t)`, `q^2 = s^2 + (1 - s)^2`, network input `x = q x_t` and output `v`:

        F = ((1 - 2 s) x + q^2 v) / q,    z = cos t x_t - sin t F

    As `cos t = (1 - s) / q` and `sin t = s / q`, this is `z = x - s v`: the network is one of rectified flow at time
    `s`, where `kappa = s / (1 - s)` is `tan t` again. The path of this family is therefore that of rectified flow.
    """

    name = "sana_sprint"
    loop_tensors: ClassVar[dict[str, str]] = {"prompt_embeds": "encoder_hidden_states"}
    path = RectifiedFlowPath()
    unbinned_multiple = 32
    resolution_bins: ClassVar = {32: ASPECT_RATIO_1024_BIN}
    latents_dtype = torch.float32
    arguments_with_none = ("complex_human_instruction", "max_timesteps", "intermediate_timesteps")

    @property
    def is_configured_few_step(self) -> bool | None:
        return True

    @property
    def sigma_data(self) -> float:
        """Scale of the stock loop's latents."""
        return self.pipeline.scheduler.config.sigma_data

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline, sizes = self.pipeline, self.sizes(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, **sizes})
        self.remember(arguments, "guidance_scale", "attention_kwargs")
        overrides = {
            "device": self.device,
            "lora_scale": (arguments["attention_kwargs"] or {}).get("scale"),
        }
        embeds, mask = call_stock(pipeline.encode_prompt, {**each, **overrides})
        shared = {
            **sizes,
            "guidance_scale": arguments["guidance_scale"],
            "attention_kwargs": arguments["attention_kwargs"],
        }
        return Conditions(masked_features(embeds, mask, arguments["num_images_per_prompt"]), shared=shared)

    def prepare_latents(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        num_rows: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        return self.sigma_data * super().prepare_latents(arguments, conditions, num_rows, generator, latents)

    def check_size(self, arguments: Mapping[str, Any]) -> None:
        super().check_size(arguments)
        between, steps = arguments["intermediate_timesteps"], arguments["num_inference_steps"]
        if between is not None and steps != 2:
            raise ValueError(
                f"intermediate_timesteps is {between}, which is the time between two steps, but num_inference_steps is "
                f"{steps}; give intermediate_timesteps=None, or take two steps"
            )

    def fitting_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        # The stock default is the time between two steps, and is refused beside another number of them.
        return {} if given.get("num_inference_steps", 2) == 2 else {"intermediate_timesteps": None}

    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        # A run may have another number of steps than its call, as a budget does.
        between = arguments["intermediate_timesteps"] if arguments["num_inference_steps"] == 2 else None
        # The stock pipeline hands custom timesteps over without their number, which the scheduler requires.
        self.pipeline.scheduler.set_timesteps(
            arguments["num_inference_steps"],
            timesteps=arguments["timesteps"],
            device=self.device,
            max_timesteps=arguments["max_timesteps"],
            intermediate_timesteps=between,
        )

    def levels(self, arguments: Mapping[str, Any], conditions: Conditions) -> list[float]:
        """The levels `tan t`; the default first time, 1.57080, exceeds pi / 2 and is pure noise.

        The stock pipeline returns the prediction of its last evaluation, whatever the last time is.
        """
        self.set_timesteps(arguments, conditions)
        times = self.pipeline.scheduler.timesteps.tolist()
        return [math.tan(t) if t < math.pi / 2 else math.inf for t in times[:-1]] + [0.0]

    def timestep(self, noise_to_signal: Level) -> Tensor:
        return torch.atan(as_level(noise_to_signal))

    def from_stock(self, latents: Tensor, noise_to_signal: float) -> Tensor:
        return latents / self.sigma_data

    def to_stock(self, x: Tensor, noise_to_signal: float) -> Tensor:
        return x * self.sigma_data

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        transformer, embeds = self.pipeline.transformer, features["encoder_hidden_states"]
        guidance = torch.full([len(latents)], shared["guidance_scale"], device=latents.device, dtype=embeds.dtype)
        return transformer(
            latents,
            encoder_hidden_states=embeds.to(latents.dtype),
            encoder_attention_mask=features["encoder_attention_mask"],
            guidance=guidance * transformer.config.guidance_embeds_scale,
            timestep=sent(self.path.time(noise_to_signal), latents.device, torch.float32),
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
        )[0]
