"""SANA: rectified flow on the latents of a deep-compression autoencoder, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_alpha import ASPECT_RATIO_512_BIN, ASPECT_RATIO_1024_BIN
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import ASPECT_RATIO_2048_BIN
from diffusers.pipelines.sana.pipeline_sana import ASPECT_RATIO_4096_BIN
from torch import Tensor

from .base import Conditions, repeat_rows
from .flow_matching import FlowMatchingBackbone
from .registry import register_backbone
from .resolution_bins import BinnedBackbone


@register_backbone("SanaPipeline")
class SanaBackbone(BinnedBackbone, FlowMatchingBackbone):
    """Reads a `SanaPipeline`; its levels are those of FlowMatchEuler or of a DPM-Solver with `flow_shift`."""

    family = "sana"
    resolution_bins: ClassVar = {
        128: ASPECT_RATIO_4096_BIN,
        64: ASPECT_RATIO_2048_BIN,
        32: ASPECT_RATIO_1024_BIN,
        16: ASPECT_RATIO_512_BIN,
    }
    latents_dtype = torch.float32
    arguments_with_none = ("complex_human_instruction",)

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline, sizes = self.pipeline, self.sizes(arguments)
        checked = (
            "prompt negative_prompt prompt_embeds negative_prompt_embeds prompt_attention_mask "
            "negative_prompt_attention_mask callback_on_step_end_tensor_inputs"
        )
        pipeline.check_inputs(
            height=sizes["height"], width=sizes["width"], **{name: arguments[name] for name in checked.split()}
        )
        pipeline._guidance_scale = arguments["guidance_scale"]
        pipeline._attention_kwargs = arguments["attention_kwargs"]
        encoded = (
            "prompt negative_prompt prompt_embeds negative_prompt_embeds prompt_attention_mask "
            "negative_prompt_attention_mask clean_caption max_sequence_length complex_human_instruction"
        )
        embeds, mask, negative_embeds, negative_mask = pipeline.encode_prompt(
            do_classifier_free_guidance=pipeline.do_classifier_free_guidance,
            device=pipeline._execution_device,
            lora_scale=(arguments["attention_kwargs"] or {}).get("scale"),
            **{name: arguments[name] for name in encoded.split()},
        )
        features = gemma_features(embeds, mask, arguments["num_images_per_prompt"])
        negative_features = None
        if pipeline.do_classifier_free_guidance:
            negative_features = gemma_features(negative_embeds, negative_mask, arguments["num_images_per_prompt"])
        shared = {**sizes, "attention_kwargs": arguments["attention_kwargs"]}
        return Conditions(features, negative_features, arguments["guidance_scale"], shared)

    def set_timesteps(self, arguments: Mapping[str, Any], conditions: Conditions) -> None:
        """As the stock pipeline does.

        Raises:
            ValueError: custom `timesteps` that the scheduler does not keep beside their own levels: it shifts those.
        """
        super().set_timesteps(arguments, conditions)
        scheduler = self.pipeline.scheduler
        if arguments["timesteps"] is None:
            return
        gap = scheduler.timesteps - 1000 * scheduler.sigmas[:-1].to(scheduler.timesteps.device)
        # Some schedulers cut their timesteps down to whole numbers.
        if gap.abs().max() > 1:
            raise ValueError(
                f"timesteps are {arguments['timesteps']}, but {type(scheduler).__name__} shifts noise levels without "
                "these times, at which the network would be asked; give sigmas, from which it derives both"
            )

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        transformer = self.pipeline.transformer
        timestep = self.timestep(noise_to_signal).to(latents.device, torch.float32)
        prediction = transformer(
            latents,
            encoder_hidden_states=features["encoder_hidden_states"].to(latents.dtype),
            encoder_attention_mask=features["encoder_attention_mask"],
            timestep=timestep * transformer.config.timestep_scale,
            attention_kwargs=shared["attention_kwargs"],
            return_dict=False,
        )[0]
        # A network with learned variances appends them as further channels.
        return prediction[:, : latents.shape[1]]


def gemma_features(embeds: Tensor, attention_mask: Tensor, num_images_per_prompt: int) -> dict[str, Tensor]:
    """The encoding of `P` prompts, a row for each image.

    Encode one image per prompt and repeat here: for several, the stock `encode_prompt` of SANA orders the masks unlike
    the embeddings, so that an image would depend on the prompts beside its own.
    """
    features = {"encoder_hidden_states": embeds, "encoder_attention_mask": attention_mask}
    return repeat_rows(features, len(embeds) * num_images_per_prompt)
