"""What a model family's tests are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from diamond_diffusers.transitions import ODETransition, Transition

PROMPTS = ["a red circle", "two blue stars"]


@dataclass(frozen=True)
class Family:
    """A tiny pipeline of the real class, and what its stock call is given.

    Attributes:
        build: a fresh pipeline with the same weights at every call.
        call: keywords of every stock call of the tests: few steps, smallest size, `output_type="pt"`.
        guidance: keywords under which the network is evaluated for the negative prompt too, by name of the variant.
        latents_shape: of one image, in the stock form.
        samples: a valid value for each keyword of the stock call that is not in `call`.
        transition: what reproduces the stock scheduler's steps.
        embeds: the keywords that stand for the prompts (`prompt_embeds`, ...), from the pipeline and the prompts.
        has_lora: whether stock diffusers loads LoRA for the class.
        decoder_argument: keyword under which the network gets its latents; None for the first positional one.
    """

    build: Callable[[], DiffusionPipeline]
    call: Mapping[str, Any]
    guidance: Mapping[str, Mapping[str, Any]]
    latents_shape: tuple[int, ...]
    samples: Mapping[str, Any]
    embeds: Callable[[DiffusionPipeline, list[str]], dict[str, Any]]
    transition: Transition = field(default_factory=ODETransition)
    has_lora: bool = True


def generators(count: int = 2, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + seed) for seed in range(count)]


def brightness(images: Tensor, prompts: list[str]) -> Tensor:
    return 10 * images.mean((1, 2, 3))
