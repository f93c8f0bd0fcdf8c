"""Weights and graph memory of the published models, counted on the meta device, where nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from diamond_diffusers.alignment.execution import Checkpointing, Execution
from diamond_diffusers.alignment.memory_plan import RowUse
from diamond_diffusers.alignment.memory_probe import checkpointed_use, row_use
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.core.tensors import FLOAT64_DEVICES
from diamond_diffusers.families.base import Family
from diamond_diffusers.pipelines.modules import frozen
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.rewards import preprocessing
from diamond_diffusers.rewards.preprocessing import ImagePreprocessing

from .fused_attention import fused_attention
from .zoo.published import PUBLISHED_MODELS
from .zoo.published_encoders import TEXT_ENCODERS, clip_large

LEVEL = 1.0
"""A noise level at which every family is guided."""
KEPT_ON_CPU = {"z_image": ("lengths",), "lumina2": ("encoder_attention_mask",)}
"""Features by which networks choose shapes."""

Part = Literal["network", "decoder", "reward"]


@dataclass(frozen=True)
class Weights:
    """Numbers of a model, in weights and buffers.

    Attributes:
        network: of the network.
        text_encoders: of all text encoders.
        decoder: of the whole autoencoder.
    """

    network: int
    text_encoders: int
    decoder: int


@dataclass(frozen=True)
class ParticleMemory:
    """What a particle takes in each part, classifier-free guidance included where the stock call has it."""

    network: RowUse
    decoder: RowUse
    reward: RowUse


@cache
def weights_of(name: str) -> Weights:
    """The numbers of a published model."""
    published = PUBLISHED_MODELS[name]
    pipeline = published.build("full", "meta", torch.bfloat16)
    network, decoder = (numbers(pipeline.components[part]) for part in published.modules)
    return Weights(network, sum(map(encoder_numbers, published.text_encoders)), decoder)


@cache
def encoder_numbers(name: str) -> int:
    """The numbers of a text encoder of `TEXT_ENCODERS`."""
    with torch.device("meta"):
        return numbers(TEXT_ENCODERS[name]())


def numbers(module: nn.Module) -> int:
    """Of a module, in weights and buffers."""
    return sum(each.numel() for each in (*module.parameters(), *module.buffers()))


@cache
def particle_memory(
    name: str, pixels: int, dtype: torch.dtype, size: str = "full", device: str = "meta"
) -> ParticleMemory:
    """Counts what a particle of a published model takes, and what a CLIP ViT-L takes that scores it.

    Args:
        name: in `PUBLISHED_MODELS`.
        pixels: height and width.
        dtype: of all weights.
        size: as published, or `tiny`.
        device: `meta`, where attention is counted by the rule of fused kernels; elsewhere it is really computed.
    """
    family, conditions, latents = prepared_model(name, pixels, dtype, size, device)

    def predict(x: Tensor, in_blocks: bool) -> Tensor:
        with family.evaluating_network(in_blocks):
            return family.predict(x, LEVEL, conditions)

    def decode(z: Tensor, in_blocks: bool) -> Tensor:
        with family.evaluating_decoder(in_blocks):
            return family.decode(z, conditions)

    with fused_attention() if device == "meta" else nullcontext(), frozen(family.parts()):
        return ParticleMemory(
            network=_use("network", predict, latents),
            decoder=_use("decoder", decode, latents),
            reward=_of_reward(pixels, dtype, device),
        )


def prepared_model(
    name: str, pixels: int, dtype: torch.dtype, size: str, device: str
) -> tuple[Family, Conditions, Tensor]:
    """A published model, its conditions of one prompt, and latents `[1, ...]` of one image."""
    published, cpu = PUBLISHED_MODELS[name], torch.device("cpu")
    pipe = DiamondMapPipeline.from_pipe(published.build(size, device, dtype))
    # Prompts are encoded and noise is drawn there, since some of that looks at numbers.
    pipe.family._device = cpu
    call = pipe.prepare(**published.arguments(pipe.pipeline, size, pixels, cpu), reward_prompt="any")
    conditions, kept = call.conditions, KEPT_ON_CPU.get(name, ())
    latents = call.family.prepare_latents(call.arguments, conditions, 1, torch.Generator())

    def moved(values: dict[str, Any] | None) -> dict[str, Any] | None:
        return values and {
            key: value.to(device) if isinstance(value, Tensor) and key not in kept else value
            for key, value in values.items()
        }

    features = {field: moved(getattr(conditions, field)) for field in ("features", "negative_features", "shared")}
    return call.family, replace(conditions, **features), latents.to(device, torch.float32)


@cache
def _of_reward(pixels: int, dtype: torch.dtype, device: str) -> RowUse:
    # The meta device stands for CUDA, which has float64, so that images are resized there and not on the CPU.
    with patch.object(preprocessing, "FLOAT64_DEVICES", (*FLOAT64_DEVICES, device)):
        return _use("reward", _clip_features(dtype, device), torch.zeros(1, 3, pixels, pixels, device=device))


def _clip_features(dtype: torch.dtype, device: str) -> Callable[[Tensor, bool], Tensor]:
    """The features of a CLIP ViT-L, as `CLIPReward` takes them of images."""
    with torch.device(device):
        model = clip_large().to(dtype).eval().requires_grad_(False)
    prepared = ImagePreprocessing([224], [224, 224])

    def features(images: Tensor, in_blocks: bool) -> Tensor:
        embeds = model.get_image_features(prepared(images).to(dtype)).pooler_output
        return nn.functional.normalize(embeds.float(), dim=-1)

    return features


def _use(part: Part, function: Callable[[Tensor, bool], Tensor], rows: Tensor) -> RowUse:
    """What a part takes for rows; `function` is told whether it is checkpointed by blocks."""
    execution = Execution(gradient_checkpointing=Checkpointing.of_all(True))
    index = torch.zeros(len(rows), dtype=torch.long)

    def again(rows: Tensor) -> Tensor:
        return execution.checkpointed(part, lambda index, rows: function(rows, True), index, rows)

    use, _ = row_use(lambda rows: function(rows, False), rows, True)
    return checkpointed_use(again, rows, use)
