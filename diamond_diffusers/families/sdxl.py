"""Stable Diffusion XL: the UNet of Stable Diffusion with two text encoders and the sizes of images as conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..core.held import HeldChange
from ..core.model import Conditions
from ..core.tensors import to_unit_range
from .compat import moves_weights
from .differentiation import decoded
from .registry import register_family
from .stable_diffusion import StableDiffusionFamily
from .stock_call import without_none


@register_family("StableDiffusionXLPipeline")
class StableDiffusionXLFamily(StableDiffusionFamily):
    """Reads a `StableDiffusionXLPipeline`.

    With `negative_original_size` and `negative_target_size` the stock pipeline gives some rows of a batch the sizes of
    others. Here every row has the sizes that it would have alone.
    """

    name = "sdxl"
    loop_tensors: ClassVar[dict[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "add_text_embeds": "text_embeds",
        "add_time_ids": "time_ids",
    }
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ("sdxl-turbo",)
    refused_arguments: ClassVar[dict[str, str]] = {
        "denoising_end": "it leaves noise in the latents, which no reward can judge; drop it and refine the images, "
        "or call the stock pipeline"
    }

    @property
    def is_configured_few_step(self) -> bool | None:
        """SDXL-Turbo is the SDXL of 512 pixels, whose schedule ends at the last training step."""
        spacing = self.pipeline.scheduler.config.get("timestep_spacing")
        is_turbo = self.network_module.config.sample_size == 64 and spacing == "trailing"
        return True if is_turbo else super().is_configured_few_step

    def for_call(self, arguments: Mapping[str, Any]) -> Self:
        own = super().for_call(arguments)
        own.pipeline._denoising_end = None
        return own

    @contextmanager
    def calling(self) -> Iterator[None]:
        vae = self.pipeline.vae
        # Until the end of the call: a backward pass needs the weights that its forward pass had.
        with super().calling(), _UPCAST.of(vae) if vae.config.force_upcast else nullcontext():
            yield

    def image_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        default = self.pipeline.default_sample_size * self.pipeline.vae_scale_factor
        return arguments["height"] or default, arguments["width"] or default

    def prompt_features(
        self, arguments: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        embeds: Tensor
        pooled: Tensor
        negative_embeds: Tensor | None
        negative_pooled: Tensor | None
        embeds, negative_embeds, pooled, negative_pooled = self.encode_prompt(arguments)
        pooled = pooled.to(embeds.device)
        time_ids = negative_time_ids = self._time_ids(arguments, sizes, pooled, "")
        if arguments["negative_original_size"] is not None and arguments["negative_target_size"] is not None:
            negative_time_ids = self._time_ids(arguments, sizes, pooled, "negative_")
        if negative_pooled is not None:
            negative_pooled = negative_pooled.to(embeds.device)
        negative = {
            "encoder_hidden_states": negative_embeds,
            "text_embeds": negative_pooled,
            "time_ids": negative_time_ids,
        }
        return {"encoder_hidden_states": embeds, "text_embeds": pooled, "time_ids": time_ids}, without_none(negative)

    def _time_ids(self, arguments: Mapping[str, Any], sizes: Mapping[str, int], pooled: Tensor, prefix: str) -> Tensor:
        """Original size, crop and target size, which condition the UNet, `[B, 6]`."""
        size = (sizes["height"], sizes["width"])
        text_encoder = self.pipeline.text_encoder_2
        width = pooled.shape[-1] if text_encoder is None else text_encoder.config.projection_dim
        ids = self.pipeline._get_add_time_ids(
            tuple(arguments[f"{prefix}original_size"] or size),
            tuple(arguments[f"{prefix}crops_coords_top_left"]),
            tuple(arguments[f"{prefix}target_size"] or size),
            dtype=pooled.dtype,
            text_encoder_projection_dim=width,
        )
        return ids.to(pooled.device).repeat(len(pooled), 1)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        vae = self.decoder(preview)
        latents = z / vae.config.scaling_factor
        mean, deviation = vae.config.get("latents_mean"), vae.config.get("latents_std")
        if mean is not None and deviation is not None:
            latents = latents * latents.new_tensor(deviation).reshape(1, -1, 1, 1)
            latents = latents + latents.new_tensor(mean).reshape(1, -1, 1, 1)
        return to_unit_range(decoded(vae, latents, upcasts_images=True))

    def finish(self, images: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Hides the stock pipeline's watermark in the images."""
        watermark = self.pipeline.watermark
        return (images if watermark is None else to_unit_range(watermark.apply_watermark(2 * images - 1))), None

    def lora_keys(self, source: str | PathLike[str] | dict[str, Tensor], options: Mapping[str, Any]) -> list[str]:
        # By it, weights named by the blocks of the original checkpoint are renamed.
        return super().lora_keys(source, {"unet_config": self.network_module.config, **options})


def _upcast(vae: nn.Module) -> Callable[[], object]:
    """Casts a decoder that overflows in float16 to float32, unless hooks bring its weights in float16 again."""
    if vae.dtype != torch.float16 or moves_weights(vae):
        return lambda: None
    vae.to(torch.float32)
    return lambda: vae.to(torch.float16)


_UPCAST: HeldChange[nn.Module] = HeldChange(_upcast)
