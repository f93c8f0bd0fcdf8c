"""What the shared tests are told of a model family."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from torch import Tensor, nn

PROMPTS = ["a red circle", "two blue stars"]
"""Every stock call of the shared tests is given these two, or one of them."""


@dataclass(frozen=True)
class TinyFamily:
    """A tiny pipeline of the real class, and what its stock call can be given.

    Attributes:
        build: a fresh pipeline with the same weights at every call, in float32, its progress bar disabled.
        call: keywords of every call: two to four steps, the smallest size; without prompt, generator and `output_type`.
        latents_shape: of one image, in the form that the stock `latents=` takes.
        embeds: the stock keywords that stand for these prompts (`prompt_embeds`, ...), a row each, and for the
            negative prompts where `call` or the variant `guided` has them.
        variants: named sets of further keywords, valid for two prompts. Under each the stock image is reproduced.
            `call`, `embeds` and the variants together must name every stock keyword that is not refused, but for
            those in `TESTED_APART`.
        guided: the variant under which a row costs two network evaluations; None where there is no such guidance.
        has_lora: whether stock diffusers loads LoRA weights for the class.
        lora_targets: names of the network's linear layers that the tests give a LoRA.
        preview_vae: a smaller decoder for the pipeline; by default a copy of its own, for want of one.
        apart: further stock keywords, which other tests of the family give a value.
        tolerance: between our images and the stock ones, in float32.
    """

    build: Callable[[], DiffusionPipeline]
    call: Mapping[str, Any]
    latents_shape: tuple[int, ...]
    embeds: Callable[[DiffusionPipeline, list[str]], dict[str, Any]]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    guided: str | None = None
    has_lora: bool = True
    lora_targets: tuple[str, ...] = ("to_q", "to_v")
    preview_vae: Callable[[DiffusionPipeline], nn.Module] = lambda pipeline: copy.deepcopy(pipeline.vae)
    apart: tuple[str, ...] = ()
    tolerance: float = 1e-4


TESTED_APART = frozenset(
    {
        "prompt",
        "generator",
        "latents",
        "num_images_per_prompt",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    }
)
"""Stock keywords that have shared tests of their own."""


def tiny_preview_vae(latent_channels: int, upsampling_factor: int) -> AutoencoderTiny:
    """A random AutoencoderTiny that decodes the same latents to the same size."""
    stages = upsampling_factor.bit_length()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoencoderTiny(
            latent_channels=latent_channels,
            encoder_block_out_channels=(4,) * stages,
            decoder_block_out_channels=(4,) * stages,
            num_encoder_blocks=(1,) * stages,
            num_decoder_blocks=(1,) * stages,
        ).eval()


def generators(count: int = 2, first: int = 0) -> list[torch.Generator]:
    """One for each of `count` images, the same ones at every call."""
    return [torch.Generator().manual_seed(first + seed) for seed in range(count)]


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    """A differentiable reward that costs nothing."""
    return 10 * images.mean((1, 2, 3))
