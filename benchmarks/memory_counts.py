"""Weights and graph memory of the published models, counted on the meta device, where nothing is allocated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from diamond_diffusers.alignment.execution import Checkpointing, Execution
from diamond_diffusers.core.memory_use import memory_use, peak_bytes
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.families.base import Family
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.rewards.preprocessing import ImagePreprocessing

from .fused_attention import fused_attention
from .zoo.published import PUBLISHED_MODELS
from .zoo.published_encoders import TEXT_ENCODERS, clip_large

META = torch.device("meta")
LEVEL = 1.0
"""A noise level at which every family is guided."""
KEPT_ON_CPU = {"z_image": ("lengths",), "lumina2": ("encoder_attention_mask",)}
"""Features by which networks choose shapes."""


@dataclass(frozen=True)
class Weights:
    """Numbers of a model, by what holds them.

    Attributes:
        network: numbers of its weights and buffers.
        text_encoders: of all text encoders.
        decoder: of the whole autoencoder.
    """

    network: int
    text_encoders: int
    decoder: int


@dataclass(frozen=True)
class PartMemory:
    """What a part takes for one particle.

    Attributes:
        graph: bytes that its autograd graph holds.
        working: the most bytes at once of an evaluation without a graph.
        checkpointed: the most bytes at once of a forward and a backward pass, where it is evaluated again on the way
            back.
    """

    graph: int
    working: int
    checkpointed: int


@dataclass(frozen=True)
class ParticleMemory:
    """What a particle takes in each part, classifier-free guidance included where the stock call has it."""

    network: PartMemory
    decoder: PartMemory
    reward: PartMemory


@cache
def weights_of(name: str) -> Weights:
    """The numbers of a published model."""
    published = PUBLISHED_MODELS[name]
    pipeline = published.build("full", "meta", torch.bfloat16)
    network, decoder = (_numbers(pipeline.components[part]) for part in published.modules)
    with META:
        encoders = sum(_numbers(TEXT_ENCODERS[encoder]()) for encoder in published.text_encoders)
    return Weights(network, encoders, decoder)


def particle_memory(
    name: str, pixels: int, dtype: torch.dtype, size: str = "full", device: str = "meta"
) -> ParticleMemory:
    """Counts what a particle of a published model takes.

    Args:
        name: in `PUBLISHED_MODELS`.
        pixels: height and width.
        dtype: of the weights.
        size: as published, or `tiny`.
        device: `meta`, where attention is counted by the rule of fused kernels; elsewhere it is really computed.
    """
    family, conditions, latents = prepared(name, pixels, dtype, size, device)
    images = torch.empty(1, 3, pixels, pixels, device=device)
    with fused_attention() if device == "meta" else nullcontext():
        return ParticleMemory(
            network=part_memory("network", lambda x: family.predict(x, LEVEL, conditions), latents),
            decoder=part_memory("decoder", lambda z: family.decode(z, conditions), latents),
            reward=part_memory("reward", clip_similarity(dtype, device), images),
        )


def prepared(name: str, pixels: int, dtype: torch.dtype, size: str, device: str) -> tuple[Family, Conditions, Tensor]:
    """A published model, its conditions of one prompt, and latents `[1, ...]` of one image."""
    published = PUBLISHED_MODELS[name]
    pipe = DiamondMapPipeline.from_pipe(published.build(size, device, dtype))
    # Prompts are encoded and noise is drawn on the CPU, since some of that looks at numbers.
    pipe.family._device = torch.device("cpu")
    network = pipe.family.network_module.requires_grad_(False)
    pipe.vae.requires_grad_(False)
    arguments = published.arguments(pipe.pipeline, size, pixels, torch.device("cpu"))
    call = pipe.prepare(**arguments, reward_prompt="any")
    conditions = call.conditions
    kept = KEPT_ON_CPU.get(name, ())

    def moved(values: dict[str, Any] | None) -> dict[str, Any] | None:
        return values and {
            key: value.to(network.device) if isinstance(value, Tensor) and key not in kept else value
            for key, value in values.items()
        }

    latents = call.family.prepare_latents(call.arguments, conditions, 1, torch.Generator())
    fields = {field: moved(getattr(conditions, field)) for field in ("features", "negative_features", "shared")}
    return call.family, replace(conditions, **fields), latents.to(network.device, torch.float32)


def clip_similarity(dtype: torch.dtype, device: str) -> Callable[[Tensor], Tensor]:
    """A reward's function of images: the features of a CLIP ViT-L, as `CLIPReward` takes them."""
    with torch.device(device):
        model = clip_large().to(dtype).eval().requires_grad_(False)
    preprocessing = ImagePreprocessing([224], [224, 224])

    def features(images: Tensor) -> Tensor:
        embeds = model.get_image_features(preprocessing(images).to(dtype)).pooler_output
        return nn.functional.normalize(embeds.float(), dim=-1)

    return features


def part_memory(part: Any, function: Callable[[Tensor], Tensor], rows: Tensor) -> PartMemory:
    """What a part takes for rows that require gradients."""
    rows = rows.detach().requires_grad_()
    execution = Execution(gradient_checkpointing=Checkpointing.of_all(True))

    def evaluated_again(rows: Tensor) -> None:
        index = torch.zeros(len(rows), dtype=torch.long)
        result = execution.checkpointed(part, lambda index, rows: function(rows), index, rows)
        torch.autograd.grad(result, rows, torch.empty_like(result))

    with torch.enable_grad():
        plain = memory_use(function, rows)
        return PartMemory(plain.graph, plain.working, peak_bytes(evaluated_again, rows))


def _numbers(module: nn.Module) -> int:
    return sum(each.numel() for each in (*module.parameters(), *module.buffers()))
