"""Qwen-Image: rectified flow on packed latents, under true classifier-free guidance that keeps norms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.held import HeldChange
from ..core.model import Conditions
from ..core.tensors import to_unit_range
from .differentiation import decoded
from .packed_latents import PackedFamily, has_negative
from .registry import register_family
from .stock_call import call_stock, one_row_each

logger = logging.getLogger(__name__)

_MASK = "encoder_hidden_states_mask"


@register_family("QwenImagePipeline")
class QwenImageFamily(PackedFamily):
    """Reads a `QwenImagePipeline`.

    Its decoder takes latents as videos of one frame, standardised channel by channel.
    """

    name = "qwen_image"
    loop_tensors: ClassVar[dict[str, str]] = {"prompt_embeds": "encoder_hidden_states"}

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height, width = self.image_size(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, "height": height, "width": width})
        self._check_guidance(arguments)
        self.remember(arguments, "guidance_scale", "attention_kwargs")
        pipeline._current_timestep = None
        features, negative_features = self.both_features(each, arguments["num_images_per_prompt"])
        if negative_features is not None and (_MASK in features or _MASK in negative_features):
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
        if arguments["true_cfg_scale"] <= 1 and has_negative(arguments):
            logger.warning(
                "a negative prompt is given, but has no effect at true_cfg_scale %s; use one above 1",
                arguments["true_cfg_scale"],
            )

    def encode_prompt(self, arguments: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """The embeddings and, where some are padding, their mask."""
        embeds, mask = self.pipeline.encode_prompt(
            prompt=arguments[f"{prefix}prompt"],
            prompt_embeds=arguments[f"{prefix}prompt_embeds"],
            prompt_embeds_mask=arguments[f"{prefix}prompt_embeds_mask"],
            device=self.device,
            max_sequence_length=arguments["max_sequence_length"],
        )
        return {"encoder_hidden_states": embeds} | ({} if mask is None else {_MASK: mask})

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        return self.pipeline.transformer(
            hidden_states=latents,
            timestep=self.network_time(latents, noise_to_signal),
            img_shapes=[[(1, *self.token_grid(shared))]] * len(latents),
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
            **features,
        )[0]

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance after which each token keeps its positive norm."""
        guided = super().guide(positive, negative, noise_to_signal, conditions)
        return guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        vae, latents = self.decoder(preview), self.unpacked(z, conditions.shared)
        mean, std = _latent_statistics(vae, z)
        with _WITHOUT_CACHE.of(vae.decoder):
            videos = decoded(vae, latents * std + mean)
        return to_unit_range(videos[:, :, 0])

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        # An image is a video of one frame.
        law = vae.encode(images.to(vae.device, vae.dtype).unsqueeze(2)).latent_dist
        mean, std = _latent_statistics(vae, law.mean)
        return self.packed(((law.mean - mean) / std).squeeze(2)), self.packed((law.std / std).squeeze(2))


def _drop_cache(decoder: nn.Module) -> Callable[[], object]:
    """Has a decoder of videos decode images without keeping what the next frame would need.

    That would be held beside the graph, and would make a second evaluation another one.
    """

    def without_cache(
        decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept = {name: value for name, value in options.items() if name not in ("feat_cache", "feat_idx")}
        return args, kept

    return decoder.register_forward_pre_hook(without_cache, with_kwargs=True).remove


_WITHOUT_CACHE: HeldChange[nn.Module] = HeldChange(_drop_cache)


def _latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the autoencoder's latents, `[1, C, 1, 1, 1]`."""
    mean, std = (
        torch.tensor(statistic, device=latents.device, dtype=latents.dtype).reshape(1, -1, 1, 1, 1)
        for statistic in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def _with_mask(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features with a mask in any case, of ones where nothing is padding."""
    embeds = features["encoder_hidden_states"]
    return {_MASK: embeds.new_ones(embeds.shape[:2], dtype=torch.long), **features}
