"""PixArt-Sigma: a variance-preserving transformer that predicts noise and variances, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import (
    ASPECT_RATIO_256_BIN,
    ASPECT_RATIO_512_BIN,
    ASPECT_RATIO_1024_BIN,
)
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from torch import Tensor

from ..core.model import Conditions
from .discrete_time import DiscreteTimeFamily
from .registry import register_family
from .resolution_bins import BinnedFamily
from .stock_call import call_stock, masked_features, one_row_each

_CALLBACK_REASON = "use callback_on_step_end, which gets the latents in the same scale"


@register_family("PixArtSigmaPipeline")
class PixArtSigmaFamily(BinnedFamily, DiscreteTimeFamily):
    """Reads a `PixArtSigmaPipeline`."""

    name = "pixart_sigma"
    unbinned_multiple = 8
    resolution_bins: ClassVar = {
        256: ASPECT_RATIO_2048_BIN,
        128: ASPECT_RATIO_1024_BIN,
        64: ASPECT_RATIO_512_BIN,
        32: ASPECT_RATIO_256_BIN,
    }
    refused_arguments: ClassVar[dict[str, str]] = dict.fromkeys(("callback", "callback_steps"), _CALLBACK_REASON)

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline, sizes = self.pipeline, self.sizes(arguments)
        each = one_row_each(arguments)
        call_stock(pipeline.check_inputs, {**each, **sizes})
        is_guided = arguments["guidance_scale"] > 1
        overrides = {"do_classifier_free_guidance": is_guided, "device": self.device}
        embeds, mask, negative_embeds, negative_mask = call_stock(pipeline.encode_prompt, {**each, **overrides})
        num_images = arguments["num_images_per_prompt"]
        features, negative_features = masked_features(embeds, mask, num_images), None
        if is_guided:
            negative_features = masked_features(negative_embeds, negative_mask, num_images)
        return Conditions(features, negative_features, arguments["guidance_scale"], sizes)

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        prediction = self.pipeline.transformer(
            latents,
            timestep=self.timestep(noise_to_signal).to(latents.device, torch.float32),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
            **features,
        )[0]
        # The second half of the channels are learned variances, which samplers leave aside.
        return prediction[:, : latents.shape[1]]
