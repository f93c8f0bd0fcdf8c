"""Stable Diffusion 3 and 3.5: rectified flow under classifier-free and skip-layer guidance, with IP-Adapters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.levels import Level
from ..core.model import Conditions
from ..core.tensors import where_rows
from .flow_matching import FlowMatchingFamily
from .registry import register_family
from .schedules import level_interval, within
from .stock_call import call_stock, image_prompt_rows, one_row_each, repeat_rows

logger = logging.getLogger(__name__)

_IMAGE_EMBEDS = "ip_adapter_image_embeds"


@register_family("StableDiffusion3Pipeline")
class StableDiffusion3Family(FlowMatchingFamily):
    """Reads a `StableDiffusion3Pipeline`.

    Skip-layer guidance (`skip_guidance_layers`) costs a third evaluation. Its range of steps is read as the range of
    noise levels that those steps of the stock loop pass.
    """

    name = "stable_diffusion_3"
    loop_tensors: ClassVar[dict[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "pooled_prompt_embeds": "pooled_projections",
    }
    joins_negative = True
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ("stable-diffusion-3.5-large-turbo",)

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height, width = self.image_size(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, "height": height, "width": width})
        self.remember(arguments, "guidance_scale", "skip_layer_guidance_scale", "clip_skip", "joint_attention_kwargs")
        features, negative_features = self._encode_prompt(each)
        self._add_image_prompt(arguments, features, negative_features)
        shared = {
            "height": height,
            "width": width,
            "joint_attention_kwargs": arguments["joint_attention_kwargs"] or {},
        }
        num_images = arguments["num_images_per_prompt"]
        conditions = Conditions(
            repeat_rows(features, num_images),
            repeat_rows(negative_features, num_images) if pipeline.do_classifier_free_guidance else None,
            arguments["guidance_scale"],
            shared,
        )
        if arguments["skip_guidance_layers"] is not None:
            shared.update(self._skip_layer_guidance(arguments, conditions))
        return conditions

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        return self.pipeline.vae_scale_factor * self.pipeline.patch_size

    def _encode_prompt(self, each: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        guided = self.pipeline.do_classifier_free_guidance
        overrides = {
            "do_classifier_free_guidance": guided,
            "device": self.device,
            "lora_scale": (each["joint_attention_kwargs"] or {}).get("scale"),
        }
        embeds, negative_embeds, pooled, negative_pooled = call_stock(
            self.pipeline.encode_prompt, {**each, **overrides}
        )
        features = {"encoder_hidden_states": embeds, "pooled_projections": pooled}
        negative_features = {"encoder_hidden_states": negative_embeds, "pooled_projections": negative_pooled}
        return features, negative_features if guided else {}

    def _add_image_prompt(
        self, arguments: Mapping[str, Any], features: dict[str, Tensor], negative_features: dict[str, Tensor]
    ) -> None:
        """Adds the features of the image prompts to those of the prompts, which have one row each."""
        pipeline, image, embeds = self.pipeline, arguments["ip_adapter_image"], arguments[_IMAGE_EMBEDS]
        if image is None and embeds is None:
            return
        if getattr(pipeline.transformer, "image_proj", None) is None:
            raise ValueError("an image prompt is given, but no IP-Adapter is loaded; call load_ip_adapter(...) first")
        if embeds is None and not pipeline.is_ip_adapter_active:
            return
        guided = pipeline.do_classifier_free_guidance
        device, count = self.device, len(features["encoder_hidden_states"])
        name = "ip_adapter_image" if embeds is None else _IMAGE_EMBEDS
        if embeds is None:
            embeds = pipeline.prepare_ip_adapter_image_embeds(image, None, device, 1, guided)
        positive, negative = image_prompt_rows(name, embeds.to(device), count, guided)
        features[_IMAGE_EMBEDS] = positive
        if negative is not None:
            negative_features[_IMAGE_EMBEDS] = negative

    def _skip_layer_guidance(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        """The layers to skip, the weight, and the levels at which the stock loop skips them."""
        if conditions.negative_features is None:
            logger.warning(
                "skip_guidance_layers is given, but has no effect at guidance_scale %s, without classifier-free "
                "guidance; use a guidance_scale above 1",
                arguments["guidance_scale"],
            )
            return {}
        levels = self.levels(arguments, conditions)
        count = len(levels) - 1
        start, stop = arguments["skip_layer_guidance_start"], arguments["skip_layer_guidance_stop"]
        steps = [step for step in range(count) if count * start < step < count * stop]
        return {
            "skip_guidance_layers": arguments["skip_guidance_layers"],
            "skip_layer_guidance_scale": arguments["skip_layer_guidance_scale"],
            "skip_layer_guidance_levels": level_interval(levels, steps),
        }

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        if arguments["mu"] is not None:
            return {"mu": arguments["mu"]}
        if not self.pipeline.scheduler.config.get("use_dynamic_shifting"):
            return {}
        patch = self.pipeline.vae_scale_factor * self.pipeline.transformer.config.patch_size
        tokens = (conditions.shared["height"] // patch) * (conditions.shared["width"] // patch)
        return {"mu": self.dynamic_shift(tokens, max_shift=1.16)}

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        attention_options = dict(shared["joint_attention_kwargs"])
        if _IMAGE_EMBEDS in features:
            attention_options[_IMAGE_EMBEDS] = features[_IMAGE_EMBEDS]
        return self.pipeline.transformer(
            hidden_states=latents,
            timestep=self.timestep(noise_to_signal).to(latents.device, torch.float32),
            encoder_hidden_states=features["encoder_hidden_states"],
            pooled_projections=features["pooled_projections"],
            joint_attention_kwargs=attention_options,
            return_dict=False,
            skip_layers=shared.get("skip_layers"),
        )[0]

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        evaluations = super().evaluations_per_row(noise_to_signal, conditions)
        interval = conditions.shared.get("skip_layer_guidance_levels")
        # It comes with classifier-free guidance, without which a Diamond Map is evaluated.
        is_skipped = conditions.negative_features is not None and interval and within(noise_to_signal, interval).any()
        return evaluations + 1 if is_skipped else evaluations

    def guided_prediction(self, latents: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance, and skip-layer guidance away from the prediction without some layers."""
        if self.evaluations_per_row(noise_to_signal, conditions) < 3:
            return super().guided_prediction(latents, noise_to_signal, conditions)
        positive, negative = self.both_predictions(latents, noise_to_signal, conditions)
        guided = self.guide(positive, negative, noise_to_signal, conditions)
        shared = conditions.shared
        skipping = {**shared, "skip_layers": shared["skip_guidance_layers"]}
        skipped = self.network(latents, noise_to_signal, conditions.features, skipping)
        skipped_away = guided + shared["skip_layer_guidance_scale"] * (positive - skipped)
        return where_rows(within(noise_to_signal, shared["skip_layer_guidance_levels"]), skipped_away, guided)
