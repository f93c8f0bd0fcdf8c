"""FLUX.1: rectified flow on packed latents, guidance embedding (dev) or none (schnell), and true CFG."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from torch import Tensor

from ..levels import Level, RectifiedFlowPath, working_dtype
from .base import Backbone, Conditions
from .registry import register_backbone

logger = logging.getLogger(__name__)

_ADAPTER_REASON = "image prompts are not supported while aligning; drop it, or call the stock pipeline"


@register_backbone("FluxPipeline")
class FluxBackbone(Backbone):
    """Reads a `FluxPipeline`. Latents are packed, `[N, tokens, channels]`, as everywhere in that pipeline."""

    family = "flux"
    path = RectifiedFlowPath()

    refused_arguments: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "ip_adapter_image",
            "ip_adapter_image_embeds",
            "negative_ip_adapter_image",
            "negative_ip_adapter_image_embeds",
        ),
        _ADAPTER_REASON,
    )

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height = arguments["height"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        width = arguments["width"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        checked = (
            "prompt prompt_2 negative_prompt negative_prompt_2 prompt_embeds negative_prompt_embeds "
            "pooled_prompt_embeds negative_pooled_prompt_embeds callback_on_step_end_tensor_inputs max_sequence_length"
        )
        pipeline.check_inputs(height=height, width=width, **{name: arguments[name] for name in checked.split()})
        self._warn_of_unused_guidance(arguments["guidance_scale"])
        features, text_ids = self._encode_prompt(arguments, "")
        negative_features = None
        has_negative = arguments["negative_prompt"] is not None or arguments["negative_prompt_embeds"] is not None
        if arguments["true_cfg_scale"] > 1 and has_negative:
            negative_features, _ = self._encode_prompt(arguments, "negative_")
            count = len(features["encoder_hidden_states"])
            # One negative prompt serves a batch of prompts.
            negative_features = {
                name: feature.repeat(count // len(feature), *[1] * (feature.ndim - 1))
                for name, feature in negative_features.items()
            }
        block = pipeline.vae_scale_factor * 2
        latent_height, latent_width = 2 * (int(height) // block), 2 * (int(width) // block)
        dtype, device = features["encoder_hidden_states"].dtype, features["encoder_hidden_states"].device
        shared = {
            "height": height,
            "width": width,
            "txt_ids": text_ids,
            "img_ids": pipeline._prepare_latent_image_ids(1, latent_height // 2, latent_width // 2, device, dtype),
            "guidance_scale": arguments["guidance_scale"],
            "joint_attention_kwargs": arguments["joint_attention_kwargs"] or {},
        }
        return Conditions(features, negative_features, arguments["true_cfg_scale"], shared)

    def _warn_of_unused_guidance(self, guidance_scale: float) -> None:
        stock_default = inspect.signature(type(self.pipeline).__call__).parameters["guidance_scale"].default
        if not self.pipeline.transformer.config.guidance_embeds and guidance_scale not in (0, stock_default):
            logger.warning(
                "guidance_scale is %s, which has no effect on a FLUX without guidance embedding; "
                "use true_cfg_scale with a negative_prompt",
                guidance_scale,
            )

    def _encode_prompt(self, arguments: Mapping[str, Any], prefix: str) -> tuple[dict[str, Tensor], Tensor]:
        attention_options = arguments["joint_attention_kwargs"] or {}
        embeds, pooled, text_ids = self.pipeline.encode_prompt(
            prompt=arguments[f"{prefix}prompt"],
            prompt_2=arguments[f"{prefix}prompt_2"],
            prompt_embeds=arguments[f"{prefix}prompt_embeds"],
            pooled_prompt_embeds=arguments[f"{prefix}pooled_prompt_embeds"],
            device=self.pipeline._execution_device,
            num_images_per_prompt=arguments["num_images_per_prompt"],
            max_sequence_length=arguments["max_sequence_length"],
            lora_scale=attention_options.get("scale"),
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}, text_ids

    def initial_latents(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        num_rows: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        features = conditions.features["encoder_hidden_states"]
        latents, _ = self.pipeline.prepare_latents(
            num_rows,
            self.pipeline.transformer.config.in_channels // 4,
            conditions.shared["height"],
            conditions.shared["width"],
            features.dtype,
            features.device,
            generator,
        )
        return latents.to(working_dtype(latents))

    def levels(self, arguments: Mapping[str, Any], conditions: Conditions) -> list[float]:
        scheduler, count = self.pipeline.scheduler, arguments["num_inference_steps"]
        sigmas = arguments["sigmas"]
        if sigmas is None and not scheduler.config.get("use_flow_sigmas"):
            sigmas = np.linspace(1.0, 1 / count, count)
        mu = calculate_shift(
            len(conditions.shared["img_ids"]),
            scheduler.config.get("base_image_seq_len", 256),
            scheduler.config.get("max_image_seq_len", 4096),
            scheduler.config.get("base_shift", 0.5),
            scheduler.config.get("max_shift", 1.15),
        )
        retrieve_timesteps(scheduler, count, self.pipeline._execution_device, sigmas=sigmas, mu=mu)
        return self.path.noise_to_signal(scheduler.sigmas.double().cpu()).tolist()

    def denoise(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        time = self.path.time(noise_to_signal)
        latents = self.path.from_bounded(x, time)
        inputs = latents.to(self.pipeline.transformer.dtype)
        if conditions.negative_features is None:
            velocity = self._velocity(inputs, time, conditions.features, conditions.shared)
        else:
            both = {
                name: torch.cat([feature, conditions.negative_features[name]])
                for name, feature in conditions.features.items()
            }
            positive, negative = self._velocity(
                torch.cat([inputs, inputs]), time.repeat(2) if time.ndim else time, both, conditions.shared
            ).chunk(2)
            velocity = negative + conditions.classifier_free_guidance_scale * (positive - negative)
        return self.path.denoised(latents, velocity.to(x.dtype), time)

    def _velocity(self, latents: Tensor, time: Tensor, features: dict[str, Tensor], shared: dict[str, Any]) -> Tensor:
        transformer = self.pipeline.transformer
        # The stock loop rounds the timestep, in thousandths, to the dtype of the latents.
        timestep = (time * 1000).to(latents.device, torch.float32).to(latents.dtype).expand(len(latents)) / 1000
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full([len(latents)], shared["guidance_scale"], device=latents.device, dtype=torch.float32)
        return transformer(
            hidden_states=latents,
            timestep=timestep,
            guidance=guidance,
            txt_ids=shared["txt_ids"],
            img_ids=shared["img_ids"],
            joint_attention_kwargs=shared["joint_attention_kwargs"],
            return_dict=False,
            **features,
        )[0]

    def decode(self, z: Tensor, conditions: Conditions) -> Tensor:
        pipeline = self.pipeline
        latents = pipeline._unpack_latents(
            z, conditions.shared["height"], conditions.shared["width"], pipeline.vae_scale_factor
        )
        latents = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
        images = pipeline.vae.decode(latents.to(pipeline.vae.dtype), return_dict=False)[0]
        return (images.to(working_dtype(images)) / 2 + 0.5).clamp(0, 1)
