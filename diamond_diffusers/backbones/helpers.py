"""Small steps that model families share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..levels import working_dtype


@contextmanager
def adapters_disabled(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Evaluates a model without some of its LoRA adapters, and leaves the others, with their weights, active."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    active = [layer.active_adapters for layer in layers]
    for layer, adapters in zip(layers, active, strict=True):
        # set_adapter would also set requires_grad.
        layer._active_adapter = [name for name in adapters if name not in names]
    try:
        yield
    finally:
        for layer, adapters in zip(layers, active, strict=True):
            layer._active_adapter = adapters


def offloads_layers(module: nn.Module) -> bool:
    """Whether parts of a module are moved on and off the device: sequential offloading, or that of groups of layers."""
    return _is_group_offload_enabled(module) or any(
        _offloads(getattr(part, "_hf_hook", None)) for part in module.modules()
    )


def _offloads(hook: Any) -> bool:
    """Whether an accelerate hook offloads; sequential offloading puts such hooks on the innermost modules."""
    return getattr(hook, "offload", False) or any(_offloads(part) for part in getattr(hook, "hooks", ()))


def to_unit_range(images: Tensor) -> Tensor:
    """Decoded images in [-1, 1], brought to [0, 1] in float32 or wider."""
    return (images.to(working_dtype(images)) / 2 + 0.5).clamp(0, 1)


def where_rows(marked: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Of two predictions `[N, ...]`, the chosen one in the rows that are marked `[N]`."""
    return torch.where(marked.to(chosen.device).reshape(-1, *[1] * (chosen.ndim - 1)), chosen, otherwise)


def call_stock(method: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Calls a method of a stock pipeline with those of the given arguments that it takes."""
    return method(**{name: given[name] for name in inspect.signature(method).parameters if name in given})


def repeat_rows(features: Mapping[str, Tensor], num_rows: int) -> dict[str, Tensor]:
    """Features with as many rows as there are images, where one prompt serves several of them.

    Raises:
        ValueError: the rows cannot be dealt out evenly.
    """
    for feature in features.values():
        if len(feature) > num_rows or num_rows % len(feature):
            raise ValueError(
                f"the prompt or negative prompt was encoded to {len(feature)} rows for {num_rows} images; "
                "give one negative prompt for each prompt, or one for all"
            )
    return {
        name: feature.repeat_interleave(num_rows // len(feature), 0) if len(feature) < num_rows else feature
        for name, feature in features.items()
    }


def masked_features(embeds: Tensor, attention_mask: Tensor, num_rows: int) -> dict[str, Tensor]:
    """An encoding of prompts with its mask, a row for each image.

    Encode one image per prompt and repeat here: for several, the stock `encode_prompt` of SANA and Lumina 2 orders the
    masks unlike the embeddings, so that an image would depend on the prompts beside its own.
    """
    return repeat_rows({"encoder_hidden_states": embeds, "encoder_attention_mask": attention_mask}, num_rows)
