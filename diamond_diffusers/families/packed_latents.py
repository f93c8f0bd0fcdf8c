"""The base class of families whose stock pipelines pack latents into tokens (FLUX, Qwen-Image)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.model import Conditions
from .flow_matching import FlowMatchingFamily
from .stock_call import repeat_rows


class PackedFamily(FlowMatchingFamily):
    """A family with packed latents `[N, tokens, channels]`, as everywhere in these pipelines.

    Classifier-free guidance is what the pipelines call true guidance. It is off unless `true_cfg_scale` is above 1 and
    a negative prompt is given.
    """

    @property
    def num_latent_channels(self) -> int:
        return super().num_latent_channels // 4

    def check_size(self, arguments: Mapping[str, Any]) -> None:
        block = self.pipeline.vae_scale_factor * 2
        # The stock pipelines round sizes down, and warn.
        for side in ("height", "width"):
            size = arguments.get(side)
            if size is not None and size < block:
                raise ValueError(f"{side} is {size}, which is less than a token; give at least {block}")

    def token_grid(self, shared: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of tokens of images whose `height` and `width` are shared."""
        block = self.pipeline.vae_scale_factor * 2
        return int(shared["height"]) // block, int(shared["width"]) // block

    @abstractmethod
    def encode_prompt(self, arguments: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
        """Features of the prompts (with the prefix `negative_`, of the negative prompts), one row each."""

    def both_features(
        self, each: Mapping[str, Any], num_images_per_prompt: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Features of the images by their prompts and, under guidance, by their negative prompts.

        Args:
            each: the arguments, as from `one_row_each`.
            num_images_per_prompt: number of rows of each prompt.
        """
        features = repeat_rows(self.encode_prompt(each, ""), num_images_per_prompt)
        if each["true_cfg_scale"] <= 1 or not has_negative(each):
            return features, None
        return features, repeat_rows(self.encode_prompt(each, "negative_"), num_images_per_prompt)

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        rows, columns = self.token_grid(conditions.shared)
        return self.shifted_schedule(arguments, rows * columns)

    def network_time(self, latents: Tensor, noise_to_signal: Tensor) -> Tensor:
        """The time as the network takes it, `[N]`."""
        # The stock loops round the timestep, in thousandths, to the dtype of the latents.
        return self.timestep(noise_to_signal).to(latents.device, torch.float32).to(latents.dtype) / 1000

    def packed(self, latents: Tensor) -> Tensor:
        return self.pipeline._pack_latents(latents, *latents.shape)

    def unpacked(self, z: Tensor, shared: Mapping[str, Any]) -> Tensor:
        """Latents in the form of the autoencoder."""
        return self.pipeline._unpack_latents(z, shared["height"], shared["width"], self.pipeline.vae_scale_factor)


def has_negative(arguments: Mapping[str, Any]) -> bool:
    """Whether a negative prompt is given, as text or embedded."""
    return arguments["negative_prompt"] is not None or arguments["negative_prompt_embeds"] is not None
