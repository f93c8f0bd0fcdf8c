"""Lumina 2: rectified flow in reversed time, under truncated, norm-preserving guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..levels import Level
from .base import Conditions, repeat_rows, to_unit_range, where_rows
from .flow_matching import FlowMatchingBackbone
from .registry import register_backbone
from .schedules import level_interval, within


@register_backbone("Lumina2Pipeline")
class Lumina2Backbone(FlowMatchingBackbone):
    """Reads a `Lumina2Pipeline`.

    Its network takes the time `1 - t` and predicts `z - eps`. `cfg_trunc_ratio` ends guidance after a share of the
    stock loop's steps; that is read as the noise level at which the last of them ends.
    """

    family = "lumina2"

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height = arguments["height"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        width = arguments["width"] or pipeline.default_sample_size * pipeline.vae_scale_factor
        checked = (
            "prompt negative_prompt prompt_embeds negative_prompt_embeds prompt_attention_mask "
            "negative_prompt_attention_mask callback_on_step_end_tensor_inputs max_sequence_length"
        )
        pipeline.check_inputs(height=height, width=width, **{name: arguments[name] for name in checked.split()})
        pipeline._guidance_scale = arguments["guidance_scale"]
        pipeline._attention_kwargs = arguments["attention_kwargs"]
        features, negative_features = self._encode_prompt(arguments)
        shared = {
            "height": height,
            "width": width,
            "cfg_normalization": arguments["cfg_normalization"],
            "attention_kwargs": arguments["attention_kwargs"],
        }
        conditions = Conditions(features, negative_features, arguments["guidance_scale"], shared)
        if negative_features is not None:
            levels = self.levels(arguments, conditions)
            count = len(levels) - 1
            guided = [step for step in range(count) if (step + 1) / count <= arguments["cfg_trunc_ratio"]]
            shared["guided_levels"] = level_interval(levels, guided)
        return conditions

    def _encode_prompt(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        passed = (
            "prompt negative_prompt prompt_embeds negative_prompt_embeds prompt_attention_mask "
            "negative_prompt_attention_mask system_prompt max_sequence_length"
        )
        embeds, mask, negative_embeds, negative_mask = self.pipeline.encode_prompt(
            **{name: arguments[name] for name in passed.split()},
            do_classifier_free_guidance=self.pipeline.do_classifier_free_guidance,
            device=self.pipeline._execution_device,
            # Stock would give the masks of several prompts to each other's images.
            num_images_per_prompt=1,
        )
        num_rows = len(embeds) * arguments["num_images_per_prompt"]
        features = repeat_rows({"encoder_hidden_states": embeds, "encoder_attention_mask": mask}, num_rows)
        if not self.pipeline.do_classifier_free_guidance:
            return features, None
        negative = {"encoder_hidden_states": negative_embeds, "encoder_attention_mask": negative_mask}
        return features, repeat_rows(negative, num_rows)

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
            self.pipeline.transformer.config.in_channels,
            conditions.shared["height"],
            conditions.shared["width"],
            features.dtype,
            features.device,
            generator,
            latents,
        )

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        # The stock pipeline counts the channels of the latents as its tokens.
        options: dict[str, Any] = {"mu": self.dynamic_shift(self.pipeline.transformer.config.in_channels)}
        if arguments["sigmas"] is None:
            count = arguments["num_inference_steps"]
            options["sigmas"] = np.linspace(1.0, 1 / count, count)
        return options

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        timestep = self.timestep(noise_to_signal).float()
        return -self.pipeline.transformer(
            hidden_states=latents,
            timestep=(1 - timestep / self.pipeline.scheduler.config.num_train_timesteps).to(latents.device),
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
            **features,
        )[0]

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        if conditions.negative_features is None:
            return 1
        return 2 if within(noise_to_signal, conditions.shared["guided_levels"]).any() else 1

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance; with `cfg_normalization`, each line of a channel keeps its positive norm."""
        guided = super().guide(positive, negative, noise_to_signal, conditions)
        if conditions.shared["cfg_normalization"]:
            guided = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return where_rows(within(noise_to_signal, conditions.shared["guided_levels"]), guided, positive)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        vae = self.decoder(preview)
        latents = z / vae.config.scaling_factor + vae.config.shift_factor
        return to_unit_range(vae.decode(latents.to(vae.dtype), return_dict=False)[0])
