"""Z-Image and Z-Image-Turbo: rectified flow in reversed time, under truncated and renormalised guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.levels import Level
from ..core.model import Conditions
from .flow_matching import FlowMatchingFamily
from .registry import register_family
from .stock_call import one_row_each, repeat_rows


@register_family("ZImagePipeline")
class ZImageFamily(FlowMatchingFamily):
    """Reads a `ZImagePipeline`.

    Its network takes lists of latents and of prompt embeddings of any length, the time `1 - t`, and predicts `z - eps`.
    `cfg_truncation` is a rule for times already: guidance, and with it the second evaluation, ends where `1 - t`
    exceeds it.
    """

    name = "z_image"
    loop_tensors: ClassVar[dict[str, str]] = {"prompt_embeds": "encoder_hidden_states"}
    few_step_checkpoints: ClassVar[tuple[str, ...]] = ("z-image-turbo",)
    latents_dtype = torch.float32

    @property
    def is_configured_few_step(self) -> bool | None:
        """The times of Z-Image-Turbo are shifted by 3, those of Z-Image by 6."""
        shifts = {3.0: True, 6.0: False}
        return shifts.get(self.pipeline.scheduler.config.get("shift"), super().is_configured_few_step)

    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        pipeline = self.pipeline
        height, width = self.image_size(arguments)
        self.remember(arguments, "guidance_scale", "joint_attention_kwargs", "cfg_normalization", "cfg_truncation")
        embeds, negative_embeds = self._encode_prompt(one_row_each(arguments))
        # Padded to one length, the prompts and the negative prompts pass the network together.
        padded = pad_sequence([*embeds, *negative_embeds], batch_first=True)
        lengths = torch.tensor([len(rows) for rows in (*embeds, *negative_embeds)], device=padded.device)
        num_images = arguments["num_images_per_prompt"]
        both = {"encoder_hidden_states": padded, "lengths": lengths}
        features = repeat_rows({name: rows[: len(embeds)] for name, rows in both.items()}, num_images)
        negative_features = None
        if pipeline.do_classifier_free_guidance:
            negative_features = repeat_rows({name: rows[len(embeds) :] for name, rows in both.items()}, num_images)
        shared = {
            "height": height,
            "width": width,
            "cfg_normalization": float(arguments["cfg_normalization"] or 0),
            "cfg_truncation": 1.0 if arguments["cfg_truncation"] is None else float(arguments["cfg_truncation"]),
            "joint_attention_kwargs": arguments["joint_attention_kwargs"],
        }
        return Conditions(features, negative_features, arguments["guidance_scale"], shared)

    def _encode_prompt(self, arguments: Mapping[str, Any]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Embeddings `[tokens, channels]` of each prompt and of each negative prompt, of which there may be none."""
        embeds, negative_embeds = arguments["prompt_embeds"], arguments["negative_prompt_embeds"]
        guided = self.pipeline.do_classifier_free_guidance
        if arguments["prompt"] is None:
            if guided and negative_embeds is None:
                raise ValueError(
                    "negative_prompt_embeds is None; with prompt_embeds and without a prompt, give it too, "
                    "or guidance_scale=0"
                )
            return embeds, negative_embeds if guided else ()
        return self.pipeline.encode_prompt(
            prompt=arguments["prompt"],
            negative_prompt=arguments["negative_prompt"],
            do_classifier_free_guidance=guided,
            prompt_embeds=embeds,
            negative_prompt_embeds=negative_embeds,
            device=self.device,
            max_sequence_length=arguments["max_sequence_length"],
        )

    def shown_tensors(self, conditions: Conditions) -> dict[str, Any]:
        features = conditions.features
        rows = zip(features["encoder_hidden_states"], features["lengths"].tolist(), strict=True)
        return {"prompt_embeds": [embeds[:length] for embeds, length in rows]}

    def with_changed(self, conditions: Conditions, changed: Mapping[str, Any]) -> Conditions:
        embeds = changed["prompt_embeds"]
        lengths = torch.tensor([len(rows) for rows in embeds], device=conditions.features["lengths"].device)
        padded = {"prompt_embeds": pad_sequence(list(embeds), batch_first=True)}
        conditions = super().with_changed(conditions, padded)
        return replace(conditions, features={**conditions.features, "lengths": lengths})

    def image_size(self, arguments: Mapping[str, Any]) -> tuple[int, int]:
        return arguments["height"] or 1024, arguments["width"] or 1024

    def size_multiple(self, arguments: Mapping[str, Any]) -> int:
        return self.pipeline.vae_scale_factor * 2

    @property
    def num_latent_channels(self) -> int:
        return self.pipeline.transformer.in_channels

    def schedule_options(self, arguments: Mapping[str, Any], conditions: Conditions) -> dict[str, Any]:
        block = self.pipeline.vae_scale_factor * 2
        tokens = (conditions.shared["height"] // block) * (conditions.shared["width"] // block)
        return self.shifted_schedule(arguments, tokens)

    def network_time(self, noise_to_signal: Level) -> Tensor:
        """The time as the network counts it, rounded as in the stock loop, `[]` or `[N]`, float32."""
        return (1000 - self.timestep(noise_to_signal).float()) / 1000

    def network(
        self, latents: Tensor, noise_to_signal: Tensor, features: Mapping[str, Tensor], shared: Mapping[str, Any]
    ) -> Tensor:
        lengths = features["lengths"].tolist()
        predictions = self.pipeline.transformer(
            list(latents.unsqueeze(2).unbind()),
            self.network_time(noise_to_signal).to(latents.device),
            [rows[:length] for rows, length in zip(features["encoder_hidden_states"], lengths, strict=True)],
            joint_attention_kwargs=shared["joint_attention_kwargs"],
            return_dict=False,
        )[0]
        return -torch.stack([prediction.float() for prediction in predictions]).squeeze(2)

    def is_guided(self, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return self.network_time(noise_to_signal).double() <= conditions.shared["cfg_truncation"]

    def guide(self, positive: Tensor, negative: Tensor, noise_to_signal: Tensor, conditions: Conditions) -> Tensor:
        """Pushes away from the negative prediction, and shortens to `cfg_normalization` times the positive norm."""
        guided = positive + conditions.classifier_free_guidance_scale * (positive - negative)
        limit = conditions.shared["cfg_normalization"]
        if limit > 0:
            longest = limit * _norm(positive)
            guided = guided * (longest / _norm(guided)).clamp(max=1)
        return guided


def _norm(predictions: Tensor) -> Tensor:
    """The norm of each row `[N, ...]`, shaped to divide the rows."""
    return torch.linalg.vector_norm(predictions, dim=list(range(1, predictions.ndim)), keepdim=True)
