"""What a published model consists of, and how it is built with random weights, in full size or shrunken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

SIZES = ("tiny", "full")
TINY_PIXELS, TINY_TOKENS = 64, 8


@dataclass(frozen=True)
class Part:
    """A component: its class in diffusers, its published configuration, and what differs in the tiny model."""

    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)

    def build(self, size: str) -> Any:
        config = {**self.config, **self.tiny} if size == "tiny" else self.config
        return getattr(diffusers, self.class_name)(**config)


@dataclass(frozen=True)
class PublishedModel:
    """A model to measure.

    Attributes:
        checkpoint: whose sizes are the full ones.
        pipeline: its class in diffusers.
        modules: the network and the autoencoder.
        scheduler: of the checkpoint.
        features: shapes of one prompt's features, from the network's configuration and the number of tokens.
        tokens: of a prompt of the full model.
        pixels: height and width of an image of the full model.
        text_encoders: names in `published_encoders.TEXT_ENCODERS`; they are not built.
        options: of the pipeline's constructor.
        call: keywords of every call.
    """

    checkpoint: str
    pipeline: str
    modules: Mapping[str, Part]
    scheduler: Part
    features: Callable[[Any, int], dict[str, tuple[int, ...]]]
    tokens: int
    pixels: int
    text_encoders: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)

    def build(self, size: str, device: str, dtype: torch.dtype) -> DiffusionPipeline:
        """The stock pipeline, its weights random, without text encoders."""
        pipeline_class = getattr(diffusers, self.pipeline)
        with torch.device(device), _default_dtype(dtype):
            built = {name: part.build(size).eval() for name, part in self.modules.items()}
        parameters = inspect.signature(pipeline_class).parameters.values()
        absent = {parameter.name: None for parameter in parameters if parameter.default is inspect.Parameter.empty}
        return pipeline_class(**{**absent, **built, "scheduler": self.scheduler.build(size), **self.options})

    def arguments(
        self, pipeline: DiffusionPipeline, size: str, pixels: int | None, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Keywords of a call for one image of one prompt; features on a device, or on that of the network."""
        network = pipeline.components.get("transformer") or pipeline.components["unet"]
        shapes = self.features(network.config, self.tokens if size == "full" else TINY_TOKENS)
        generator = torch.Generator().manual_seed(0)
        pixels = pixels or (self.pixels if size == "full" else TINY_PIXELS)

        def features(name: str, shape: tuple[int, ...]) -> Tensor | list[Tensor]:
            if "mask" in name:
                return torch.ones(1, *shape, dtype=torch.long, device=device or network.device)
            rows = torch.randn(1, *shape, generator=generator).to(device or network.device, network.dtype)
            # Z-Image's prompts have lengths of their own.
            return list(rows) if self.pipeline == "ZImagePipeline" else rows

        return {
            "height": pixels,
            "width": pixels,
            **self.call,
            **{name: features(name, shape) for name, shape in shapes.items()},
        }


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def with_negatives(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return shapes | {f"negative_{name}": shape for name, shape in shapes.items()}


def autoencoder(**config: Any) -> Part:
    """The convolutional autoencoder of Stable Diffusion and of its successors."""
    shape = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    return Part("AutoencoderKL", shape | config, {"block_out_channels": (32,) * 4, "layers_per_block": 1})


WITHOUT_QUANTISER = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
