"""FLUX.1: rectified flow on packed latents, guidance embedding (dev) or none (schnell), and true CFG."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from ..core.levels import Level
from ..core.model import Conditions
from ..core.tensors import sent
from ..transitions.base import Transition
from ..transitions.flow_map import FlowMapTransition
from .packed_latents import PackedFamily
from .registry import register_family
from .stock_call import call_stock, one_row_each
from .two_time import TwoTimeEmbedder

logger = logging.getLogger(__name__)

TARGET = "target_timestep"
"""Feature that names the time to which a two-time model maps."""

_ADAPTER_REASON = "image prompts are not supported while aligning; drop it, or call the stock pipeline"


@register_family("FluxPipeline")
class FluxFamily(PackedFamily):
    """Reads a `FluxPipeline`."""

    name = "flux"
    loop_tensors: ClassVar[dict[str, str]] = {"prompt_embeds": "encoder_hidden_states"}
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ("flux.1-schnell",)
    refused_arguments: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            "ip_adapter_image",
            "ip_adapter_image_embeds",
            "negative_ip_adapter_image",
            "negative_ip_adapter_image_embeds",
        ),
        _ADAPTER_REASON,
    )

    def load_lora_weights(self, source: str | PathLike[str] | dict[str, Tensor], **options: Any) -> None:
        """Loads a LoRA. A LoRA of two times makes the network a flow map, and needs an embedder of two times first."""
        transformer = self.pipeline.transformer
        embedder = transformer.time_text_embed
        is_two_time = any("time_text_embed.second_embedder." in key for key in self.lora_keys(source, options))
        if is_two_time and self.has_diamond_map:
            raise ValueError(
                "the LoRA makes this FLUX a flow map of two times, which its Diamond Map is too, and the two do not "
                "add; unload_diamond_map() first"
            )
        if is_two_time and not isinstance(embedder, TwoTimeEmbedder):
            transformer.time_text_embed = TwoTimeEmbedder(embedder)
        try:
            super().load_lora_weights(source, **options)
        except BaseException:
            transformer.time_text_embed = embedder
            raise

    def unload_lora_weights(self, **options: Any) -> None:
        super().unload_lora_weights(**options)
        embedder = self.pipeline.transformer.time_text_embed
        if isinstance(embedder, TwoTimeEmbedder):
            self.pipeline.transformer.time_text_embed = embedder.original_embedder

    @property
    def is_configured_few_step(self) -> bool | None:
        """FLUX.1-schnell neither embeds the guidance scale nor shifts its times."""
        if self.pipeline.transformer.config.guidance_embeds:
            return False
        config = self.pipeline.scheduler.config
        is_shifted = config.get("use_dynamic_shifting", True) or config.get("shift") != 1
        return super().is_configured_few_step if is_shifted else True

    @property
    def is_two_time(self) -> bool:
        """Whether a two-time flow-map LoRA is active: then `u(t, t)` is the velocity, and `u(t, t')` the mean one."""
        embedder = self.pipeline.transformer.time_text_embed
        return isinstance(embedder, TwoTimeEmbedder) and any(
            isinstance(module, BaseTunerLayer) and module.active_adapters and not module.disable_adapters
            for module in embedder.second_embedder.modules()
        )

    @property
    def has_flow_map(self) -> bool:
        return self.is_two_time or super().has_flow_map

    @property
    def maps_by_prediction(self) -> bool:
        # A network of two times predicts by one, and maps by both.
        return not self.is_two_time and super().maps_by_prediction

    def flow_map(
        self, x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        if self.is_two_time:
            target = sent(self.timestep(next_noise_to_signal), x.device, torch.float32).expand(len(x))
            negative = conditions.negative_features
            conditions = replace(
                conditions,
                features={**conditions.features, TARGET: target},
                negative_features=negative and {**negative, TARGET: target},
            )
        return super().flow_map(x, noise_to_signal, next_noise_to_signal, conditions)

    def stock_transition(self) -> Transition:
        return FlowMapTransition() if self.is_two_time else super().stock_transition()

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height, width = self.image_size(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, "height": height, "width": width})
        self._warn_of_unused_guidance(arguments["guidance_scale"])
        self.remember(arguments, "guidance_scale", "joint_attention_kwargs")
        pipeline._current_timestep = None
        features, negative_features = self.both_features(each, arguments["num_images_per_prompt"])
        shared = {
            "height": height,
            "width": width,
            "guidance_scale": arguments["guidance_scale"],
            "joint_attention_kwargs": arguments["joint_attention_kwargs"] or {},
        }
        embeds = features["encoder_hidden_states"]
        shared["img_ids"] = pipeline._prepare_latent_image_ids(1, *self.token_grid(shared), embeds.device, embeds.dtype)
        return Conditions(features, negative_features, arguments["true_cfg_scale"], shared)

    def _warn_of_unused_guidance(self, guidance_scale: float) -> None:
        stock_default = inspect.signature(type(self.pipeline).__call__).parameters["guidance_scale"].default
        if not self.pipeline.transformer.config.guidance_embeds and guidance_scale not in (0, stock_default):
            logger.warning(
                "guidance_scale is %s, which has no effect on a FLUX without guidance embedding; "
                "use true_cfg_scale with a negative_prompt",
                guidance_scale,
            )

    def encode_prompt(self, arguments: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        attention_options = arguments["joint_attention_kwargs"] or {}
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=arguments[f"{prefix}prompt"],
            prompt_2=arguments[f"{prefix}prompt_2"],
            prompt_embeds=arguments[f"{prefix}prompt_embeds"],
            pooled_prompt_embeds=arguments[f"{prefix}pooled_prompt_embeds"],
            device=self.device,
            max_sequence_length=arguments["max_sequence_length"],
            lora_scale=attention_options.get("scale"),
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        transformer, embeds = self.pipeline.transformer, features["encoder_hidden_states"]
        timestep = self.network_time(latents, noise_to_signal)
        if self.is_two_time:
            target = features[TARGET].to(latents.dtype) / 1000 if TARGET in features else timestep
            timestep = torch.stack([timestep, target], -1)
        guidance = None
        if transformer.config.guidance_embeds:
            guidance = torch.full([len(latents)], shared["guidance_scale"], device=latents.device, dtype=torch.float32)
        return transformer(
            hidden_states=latents,
            timestep=timestep,
            guidance=guidance,
            # Texts have no positions; negative ones may be of another length.
            txt_ids=embeds.new_zeros(embeds.shape[1], 3),
            img_ids=shared["img_ids"],
            joint_attention_kwargs=shared["joint_attention_kwargs"],
            return_dict=False,
            **{name: feature for name, feature in features.items() if name != TARGET},
        )[0]

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return super().decode(self.unpacked(z, conditions.shared), conditions, preview)
