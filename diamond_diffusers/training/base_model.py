"""Loads the base model, and finds the layers of it that a map adapts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..files.foreign_models import UNLOADABLE, why_unloadable
from ..pipelines.pipeline import DiamondMapPipeline
from .errors import TrainingError

if TYPE_CHECKING:
    from .options.records import MapOptions, ModelOptions

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_base(options: ModelOptions, dtype: torch.dtype) -> DiamondMapPipeline:
    """The base model, without its Diamond Map if it comes with one; its autoencoder is in float32.

    Raises:
        TrainingError: it cannot be loaded.
    """
    name = options.pretrained_model_name_or_path
    hub = {"revision": options.revision, "variant": options.variant, "cache_dir": options.cache_dir}
    hub = {key: value for key, value in hub.items() if value is not None}
    dtypes = {"default": dtype, "vae": torch.float32}
    try:
        pipe = DiamondMapPipeline.from_pretrained(None if options.is_miniature else name, dtype=dtypes, **hub)
    except UNLOADABLE as error:
        reason = why_unloadable(error)
        raise TrainingError(f"--pretrained_model_name_or_path {name} cannot be loaded: {reason}") from error
    if pipe.family.posterior_map is not None:
        pipe.unload_diamond_map()
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    return pipe


def lora_layers(options: MapOptions, network: nn.Module) -> list[str] | None:
    """Names or name endings of the modules to adapt, from the options; None for the default of `DiamondMap`.

    Raises:
        TrainingError: the network has no module of such a name.
    """
    if not options.lora_layers:
        return None
    endings = [ending.strip() for ending in options.lora_layers.split(",")]
    names = [name for name, _ in network.named_modules()]
    for ending in endings:
        if not any(name == ending or name.endswith(f".{ending}") for name in names):
            raise TrainingError(
                f"--lora_layers names {ending!r}, which no module of the {type(network).__name__} ends in"
            )
    return endings
