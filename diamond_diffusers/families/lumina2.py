"""Lumina 2: rectified flow in reversed time, under truncated, norm-preserving guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ..core.levels import Level
from ..core.model import Conditions
from .flow_matching import FlowMatchingFamily
from .registry import register_family
from .schedules import level_interval, within
from .stock_call import call_stock, masked_features, one_row_each


@register_family("Lumina2Pipeline")
class Lumina2Family(FlowMatchingFamily):
    """Reads a `Lumina2Pipeline`.

    Its network takes the time `1 - t` and predicts `z - eps`. `cfg_trunc_ratio` ends guidance after a share of the
    stock loop's steps; that is read as the noise level at which the last of them ends.
    """

    name = "lumina2"
    loop_tensors: ClassVar[dict[str, str]] = {"prompt_embeds": "encoder_hidden_states"}

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        height, width = self.image_size(arguments)
        each = one_row_each(arguments)
        call_stock(self.pipeline.check_inputs, {**each, "height": height, "width": width})
        self.remember(arguments, "guidance_scale", "attention_kwargs")
        features, negative_features = self._encode_prompt(each, arguments["num_images_per_prompt"])
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

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        return self.pipeline.vae_scale_factor * 2

    def _encode_prompt(
        self, each: Mapping[str, Any], num_images: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        guided = self.pipeline.do_classifier_free_guidance
        overrides = {
            "do_classifier_free_guidance": guided,
            "device": self.device,
        }
        embeds, mask, negative_embeds, negative_mask = call_stock(self.pipeline.encode_prompt, {**each, **overrides})
        features = masked_features(embeds, mask, num_images)
        return features, masked_features(negative_embeds, negative_mask, num_images) if guided else None

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        # The stock pipeline counts the channels of the latents as its tokens.
        return self.shifted_schedule(arguments, self.num_latent_channels)

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

    def is_guided(self, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return within(noise_to_signal, conditions.shared["guided_levels"])

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance; with `cfg_normalization`, each line of a channel keeps its positive norm."""
        guided = super().guide(positive, negative, noise_to_signal, conditions)
        if conditions.shared["cfg_normalization"]:
            guided = guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return guided
