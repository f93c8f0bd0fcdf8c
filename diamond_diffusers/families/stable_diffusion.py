"""Stable Diffusion 1.5 and 2.1, and latent consistency models: a variance-preserving UNet on 4-channel latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, ClassVar

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from torch import Tensor

from ..core.model import Conditions
from .discrete_time import DiscreteTimeFamily
from .registry import register_family
from .stock_call import call_stock, image_prompt_rows, one_row_each, repeat_rows, without_none

_EMBEDDINGS = ("text_embeds", "time_ids")
_IMAGES = "image_embeds_"


@register_family("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
class StableDiffusionFamily(DiscreteTimeFamily):
    """Reads a `StableDiffusionPipeline`, or a `LatentConsistencyModelPipeline`.

    A UNet that embeds the guidance scale is a latent consistency model, thus a few-step one, in either pipeline. The
    boundary scalings of `LCMScheduler` differ from 1 and 0 by less than 1e-5 at all but its last training steps and
    are left out.
    """

    name = "stable_diffusion"
    loop_tensors: ClassVar[dict[str, str]] = {
        "prompt_embeds": "encoder_hidden_states",
        "negative_prompt_embeds": "encoder_hidden_states",
        "w_embedding": "timestep_cond",
    }
    joins_negative = True
    network_name = "unet"
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ("sd-turbo",)

    @property
    def is_configured_few_step(self) -> bool | None:
        return True if self.network_module.config.time_cond_proj_dim is not None else super().is_configured_few_step

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height, width = self.image_size(arguments)
        sizes = {"height": height, "width": width}
        each, num_images = one_row_each(arguments), arguments["num_images_per_prompt"]
        call_stock(pipeline.check_inputs, {**each, **sizes, "callback_steps": None})
        # A latent consistency model's pipeline has no rescaling.
        arguments = {"guidance_rescale": 0.0, **arguments}
        self.remember(arguments, "guidance_scale", "guidance_rescale", "clip_skip", "cross_attention_kwargs")
        positive, negative = self.prompt_features(each, sizes)
        if self.network_module.config.time_cond_proj_dim is not None:
            positive["timestep_cond"] = self._guidance_embedding(positive["encoder_hidden_states"])
        self._add_image_features(arguments, positive, negative)
        shared = {
            **sizes,
            "guidance_rescale": arguments["guidance_rescale"],
            "cross_attention_kwargs": arguments["cross_attention_kwargs"],
        }
        is_guided = pipeline.do_classifier_free_guidance
        return Conditions(
            repeat_rows(positive, num_images),
            repeat_rows(negative, num_images) if is_guided else None,
            arguments["guidance_scale"],
            shared,
        )

    def image_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = arguments["height"], arguments["width"]
        if not height or not width:
            size, scale = self.network_module.config.sample_size, self.pipeline.vae_scale_factor
            default_height, default_width = (size, size) if isinstance(size, int) else size
            return default_height * scale, default_width * scale
        return height, width

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        # Whatever the autoencoder's factor is.
        return 8

    def prompt_features(
        self, arguments: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of the prompts and of the negative prompts, one row each; without guidance the latter lack some."""
        embeds: Tensor
        negative_embeds: Tensor | None
        embeds, negative_embeds = self.encode_prompt(arguments)
        return {"encoder_hidden_states": embeds}, without_none({"encoder_hidden_states": negative_embeds})

    def _guidance_embedding(self, embeds: Tensor) -> Tensor:
        # Guidance is off at 1 in the stock pipelines, and at 0 for the embedding.
        scales = torch.tensor(self.pipeline.guidance_scale - 1).repeat(len(embeds))
        return self.pipeline.get_guidance_scale_embedding(
            scales, embedding_dim=self.network_module.config.time_cond_proj_dim
        ).to(embeds)

    def encode_prompt(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """The result of the stock pipeline's `encode_prompt`."""
        options = {
            "device": self.device,
            "do_classifier_free_guidance": self.pipeline.do_classifier_free_guidance,
            "lora_scale": (arguments["cross_attention_kwargs"] or {}).get("scale"),
        }
        with _text_model_within(self.pipeline.text_encoder):
            return call_stock(self.pipeline.encode_prompt, {**arguments, **options})

    def _add_image_features(
        self, arguments: Mapping[str, Any], positive: dict[str, Tensor], negative: dict[str, Tensor]
    ) -> None:
        """Adds the image features of IP-Adapters, one for each adapter, to features with a row for each prompt."""
        given = [name for name in ("ip_adapter_image", "ip_adapter_image_embeds") if arguments[name] is not None]
        if not given:
            return
        if self.network_module.encoder_hid_proj is None:
            raise ValueError(f"{given[0]} is given, but no IP-Adapter is loaded; call load_ip_adapter(...) first")
        image, embeds = arguments["ip_adapter_image"], arguments["ip_adapter_image_embeds"]
        count, num_adapters = (
            len(positive["encoder_hidden_states"]),
            self.network_module.encoder_hid_proj.num_ip_adapters,
        )
        if embeds is not None and len(embeds) != num_adapters:
            raise ValueError(f"ip_adapter_image_embeds holds {len(embeds)} tensors for {num_adapters} IP-Adapters")
        is_guided = self.pipeline.do_classifier_free_guidance
        for index, rows in enumerate(embeds or self._image_embeds(image, is_guided)):
            name = f"ip_adapter_image_embeds[{index}]"
            image_rows, negative_rows = image_prompt_rows(name, rows.to(self.device), count, is_guided)
            positive[f"{_IMAGES}{index}"] = image_rows
            if negative_rows is not None:
                negative[f"{_IMAGES}{index}"] = negative_rows

    def _image_embeds(self, image: Any, is_guided: bool) -> list[Tensor]:
        """Embeddings of the images of each adapter, one row for all prompts, after a negative one under guidance."""
        device = self.device
        return self.pipeline.prepare_ip_adapter_image_embeds(image, None, device, 1, is_guided)

    def lora_keys(self, source: str | PathLike[str] | dict[str, Tensor], options: Mapping[str, Any]) -> list[str]:
        # Many LoRAs for these models have older names, which the stock loader renames in the same way.
        return list(convert_unet_state_dict_to_peft(dict.fromkeys(super().lora_keys(source, options))))

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        added: dict[str, Any] = {name: features[name] for name in _EMBEDDINGS if name in features}
        images = [feature for name, feature in features.items() if name.startswith(_IMAGES)]
        if images:
            added["image_embeds"] = images
        return self.network_module(
            latents,
            self.timestep(noise_to_signal).to(latents.device, torch.float32),
            encoder_hidden_states=features["encoder_hidden_states"],
            timestep_cond=features.get("timestep_cond"),
            cross_attention_kwargs=shared["cross_attention_kwargs"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Classifier-free guidance, rescaled to the deviation of the prompt's prediction (arXiv 2305.08891, 3.4)."""
        guided = super().guide(positive, negative, noise_to_signal, conditions)
        rescale = conditions.shared["guidance_rescale"]
        return rescale_noise_cfg(guided, positive, rescale) if rescale > 0 else guided

    def finish(self, images: Tensor) -> tuple[Tensor, list[bool] | None]:
        """Blacks out what the stock pipeline's safety checker flags."""
        checker = self.pipeline.safety_checker
        if checker is None:
            return images, None
        _, flagged = self.pipeline.run_safety_checker(2 * images - 1, images.device, checker.dtype)
        keep = torch.tensor([not flag for flag in flagged], device=images.device)
        return images * keep.reshape(-1, 1, 1, 1), flagged


@contextmanager
def _text_model_within(text_encoder: Any) -> Iterator[None]:
    """Lets `clip_skip` find the final norm of Stable Diffusion's text encoder.

    diffusers looks for it in `text_encoder.text_model`, whose layers transformers 5 has in the text encoder itself.
    """
    missing = text_encoder is not None and not hasattr(text_encoder, "text_model")
    if missing:
        # Not as a submodule, which it would be of itself.
        text_encoder.__dict__["text_model"] = text_encoder
    try:
        yield
    finally:
        if missing:
            del text_encoder.__dict__["text_model"]
