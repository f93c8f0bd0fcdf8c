"""Qwen-Image: rectified flow on packed latents, under true classifier-free guidance that keeps norms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .base import Conditions, repeat_rows, to_unit_range
from .flow_matching import FlowMatchingBackbone
from .registry import register_backbone

logger = logging.getLogger(__name__)

_MASK = "encoder_hidden_states_mask"


@register_backbone("QwenImagePipeline")
class QwenImageBackbone(FlowMatchingBackbone):
    """Reads a `QwenImagePipeline`.

    Latents are packed, `[N, tokens, channels]`, as everywhere in that pipeline; its decoder takes them as videos of
    one frame, standardised channel by channel.
    """

    family = "qwen_image"

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height = arguments["height"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        width = arguments["width"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        checked = (
            "prompt negative_prompt prompt_embeds negative_prompt_embeds prompt_embeds_mask "
            "negative_prompt_embeds_mask callback_on_step_end_tensor_inputs max_sequence_length"
        )
        pipeline.check_inputs(height=height, width=width, **{name: arguments[name] for name in checked.split()})
        self._check_guidance(arguments)
        features = self._encode_prompt(arguments, "")
        negative_features = None
        if arguments["true_cfg_scale"] > 1 and _has_negative(arguments):
            negative_features = self._encode_prompt(arguments, "negative_")
            negative_features = repeat_rows(negative_features, len(features["encoder_hidden_states"]))
            if _MASK in features or _MASK in negative_features:
                features, negative_features = _with_mask(features), _with_mask(negative_features)
        shared = {"height": height, "width": width, "attention_kwargs": arguments["attention_kwargs"] or {}}
        return Conditions(features, negative_features, arguments["true_cfg_scale"], shared)

    def _check_guidance(self, arguments: Mapping[str, Any]) -> None:
        if self.pipeline.transformer.config.guidance_embeds:
            raise ValueError(
                "the transformer has an embedding of the guidance scale, which the QwenImageTransformer2DModel of "
                "diffusers cannot evaluate; load one with guidance_embeds=False"
            )
        if arguments["guidance_scale"] is not None:
            logger.warning(
                "guidance_scale is %s, which has no effect on Qwen-Image; use true_cfg_scale with a negative_prompt",
                arguments["guidance_scale"],
            )
        if arguments["true_cfg_scale"] <= 1 and _has_negative(arguments):
            logger.warning(
                "a negative prompt is given, but has no effect at true_cfg_scale %s; use one above 1",
                arguments["true_cfg_scale"],
            )

    def _encode_prompt(self, arguments: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """The embeddings and, where some are padding, their mask."""
        embeds, mask = self.pipeline.encode_prompt(
            prompt=arguments[f"{prefix}prompt"],
            prompt_embeds=arguments[f"{prefix}prompt_embeds"],
            prompt_embeds_mask=arguments[f"{prefix}prompt_embeds_mask"],
            device=self.pipeline._execution_device,
            num_images_per_prompt=arguments["num_images_per_prompt"],
            max_sequence_length=arguments["max_sequence_length"],
        )
        return {"encoder_hidden_states": embeds} | ({} if mask is None else {_MASK: mask})

    def _latent_shape(self, shared: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of packed latents."""
        block = self.pipeline.vae_scale_factor * 2
        return int(shared["height"]) // block, int(shared["width"]) // block

    def prepare_latents(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        num_rows: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: Tensor | None = None,
    ) -> Tensor:
        features = conditions.features["encoder_hidden_states"]
        return self.pipeline.prepare_latents(
            num_rows,
            self.pipeline.transformer.config.in_channels // 4,
            conditions.shared["height"],
            conditions.shared["width"],
            features.dtype,
            features.device,
            generator,
            latents,
        )

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        rows, columns = self._latent_shape(conditions.shared)
        options: dict[str, Any] = {"mu": self.dynamic_shift(rows * columns)}
        if arguments["sigmas"] is None:
            count = arguments["num_inference_steps"]
            options["sigmas"] = np.linspace(1.0, 1 / count, count)
        return options

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        # The stock loop rounds the timestep, in thousandths, to the dtype of the latents.
        timestep = self.timestep(noise_to_signal).to(latents.device, torch.float32).to(latents.dtype) / 1000
        return self.pipeline.transformer(
            hidden_states=latents,
            timestep=timestep,
            img_shapes=[[(1, *self._latent_shape(shared))]] * len(latents),
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
            **features,
        )[0]

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance after which each token keeps its positive norm."""
        guided = super().guide(positive, negative, noise_to_signal, conditions)
        return guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        pipeline, vae = self.pipeline, self.decoder(preview)
        latents = pipeline._unpack_latents(
            z, conditions.shared["height"], conditions.shared["width"], pipeline.vae_scale_factor
        )
        mean, std = (
            torch.tensor(statistic, device=z.device, dtype=z.dtype).reshape(1, -1, 1, 1, 1)
            for statistic in (vae.config.latents_mean, vae.config.latents_std)
        )
        videos = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
        return to_unit_range(videos[:, :, 0])


def _has_negative(arguments: Mapping[str, Any]) -> bool:
    return arguments["negative_prompt"] is not None or arguments["negative_prompt_embeds"] is not None


def _with_mask(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features with a mask in any case, of ones where nothing is padding."""
    embeds = features["encoder_hidden_states"]
    return {_MASK: embeds.new_ones(embeds.shape[:2], dtype=torch.long), **features}
