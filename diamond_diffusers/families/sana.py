"""SANA: rectified flow on the latents of a deep-compression autoencoder, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor

from ..core.model import Conditions
from ..core.tensors import working_dtype
from .flow_matching import FlowMatchingFamily
from .registry import register_family
from .resolution_bins import BinnedFamily
from .stock_call import call_stock, masked_features, one_row_each


@register_family("SanaPipeline")
class SanaFamily(BinnedFamily, FlowMatchingFamily):
    """Reads a `SanaPipeline`; its levels are those of FlowMatchEuler or of a DPM-Solver with `flow_shift`."""

    name = "sana"
    loop_tensors: ClassVar[dict[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "negative_prompt_embeds": "encoder_hidden_states",
    }
    joins_negative = True
    unbinned_multiple = 32
    resolution_bins: ClassVar = {
        128: ASPECT_RATIO_4096_BIN,
        64: ASPECT_RATIO_2048_BIN,
        32: ASPECT_RATIO_1024_BIN,
        16: ASPECT_RATIO_512_BIN,
    }
    latents_dtype = torch.float32
    arguments_with_none = ("complex_human_instruction",)

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline, sizes = self.pipeline, self.sizes(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, **sizes})
        self.remember(arguments, "guidance_scale", "attention_kwargs")
        overrides = {
            "do_classifier_free_guidance": pipeline.do_classifier_free_guidance,
            "device": self.device,
            "lora_scale": (arguments["attention_kwargs"] or {}).get("scale"),
        }
        embeds, mask, negative_embeds, negative_mask = call_stock(pipeline.encode_prompt, {**each, **overrides})
        num_images = arguments["num_images_per_prompt"]
        features, negative_features = masked_features(embeds, mask, num_images), None
        if pipeline.do_classifier_free_guidance:
            negative_features = masked_features(negative_embeds, negative_mask, num_images)
        shared = {**sizes, "attention_kwargs": arguments["attention_kwargs"]}
        return Conditions(features, negative_features, arguments["guidance_scale"], shared)

    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        """Sets the timesteps as the stock pipeline does.

        Raises:
            ValueError: custom `timesteps` are given, but the scheduler would shift their levels.
        """
        super().set_timesteps(arguments, conditions)
        scheduler = self.pipeline.scheduler
        if arguments["timesteps"] is None:
            return
        gap = scheduler.timesteps - 1000 * scheduler.sigmas[:-1].to(scheduler.timesteps.device)
        # Some schedulers cut their timesteps down to whole numbers.
        if gap.abs().max() > 1:
            raise ValueError(
                f"timesteps are {arguments['timesteps']}, but {type(scheduler).__name__} shifts noise levels without "
                "these times, at which the network would be asked; give sigmas, from which it derives both"
            )

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        transformer = self.pipeline.transformer
        timestep = self.timestep(noise_to_signal).to(latents.device, torch.float32)
        prediction = transformer(
            latents,
            encoder_hidden_states=features["encoder_hidden_states"].to(latents.dtype),
            encoder_attention_mask=features["encoder_attention_mask"],
            timestep=timestep * transformer.config.timestep_scale,
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
        )[0]
        # A network with learned variances appends them as further channels.
        prediction = prediction[:, : latents.shape[1]]
        # The stock loop guides in float32.
        return prediction.to(working_dtype(prediction))
