"""Small steps that model families share."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.utils.torch_utils import unwrap_module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..levels import working_dtype

_PROMPTS = re.compile(r"(negative_)?(pooled_)?prompt(_\d|_embeds|_embeds_mask|_attention_mask)?")
"""Arguments of stock calls with a row for each prompt."""

_lock = threading.Lock()
_network_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def alone_with(network: nn.Module) -> threading.RLock:
    """What one thread holds while it evaluates a network, or reads what its pipeline keeps of a call.

    Others might change its adapters and hooks, its pipeline's arguments or the timesteps of its scheduler meanwhile.
    Calls of one pipeline in several threads thus take turns, and give what they give alone, up to rounding.
    """
    with _lock:
        return _network_locks.setdefault(unwrap_module(network), threading.RLock())


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


def num_prompts(arguments: Mapping[str, Any]) -> int:
    """Number of prompts of a call, however they are given.

    Raises:
        TypeError: the prompt is neither a text nor a list.
        ValueError: there is none.
    """
    prompt = arguments["prompt"]
    if not (prompt is None or isinstance(prompt, str | list)):
        raise TypeError(f"prompt is a {type(prompt).__name__}; give a text or a list of texts")
    if prompt == []:
        raise ValueError("prompt is an empty list; give a text for each image")
    if prompt is None:
        embeds = arguments.get("prompt_embeds")
        if embeds is None:
            raise ValueError("prompt is None; give a prompt, or prompt_embeds")
        return len(embeds)
    return 1 if isinstance(prompt, str) else len(prompt)


def one_row_each(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments under which the stock `encode_prompt` makes one row of each prompt and of each negative prompt.

    Check and encode these, and repeat with `repeat_rows`. For several images a prompt, some stock pipelines order masks
    unlike embeddings (SANA, Lumina 2, Qwen-Image), or leave embeddings that they are given as they are (FLUX, SD3), so
    that an image would have the conditions of another.

    Args:
        arguments: of the stock `__call__`; a second or negative prompt may be one for all.

    Raises:
        ValueError: texts, embeddings or masks are neither one for each prompt nor one for all.
    """
    count, each = num_prompts(arguments), {**arguments, "num_images_per_prompt": 1}
    for name, given in arguments.items():
        if not (_PROMPTS.fullmatch(name) and isinstance(given, str | Sequence | Tensor)):
            continue
        rows = [given] if isinstance(given, str) else given
        if len(rows) not in (1, count):
            raise ValueError(
                f"{name} holds {len(rows)} rows for {count} prompts; give one for each prompt, or one for all"
            )
        if len(rows) < count:
            rows = rows.repeat_interleave(count, 0) if isinstance(rows, Tensor) else list(rows) * count
        # Stock pipelines write into lists of texts.
        each[name] = rows if isinstance(rows, Tensor) else list(rows)
    return each


def repeat_rows(features: Mapping[str, Tensor], num_images_per_prompt: int) -> dict[str, Tensor]:
    """Features with a row for each prompt, given one for each image: consecutive ones of each prompt."""
    return {name: feature.repeat_interleave(num_images_per_prompt, 0) for name, feature in features.items()}


def image_prompt_rows(name: str, embeds: Tensor, count: int, is_guided: bool) -> tuple[Tensor, Tensor | None]:
    """Embeddings of image prompts with a row for each of `count` prompts, and their negative ones under guidance.

    Args:
        embeds: one row for each prompt or one for all; under guidance, as many negative ones before them.

    Raises:
        ValueError: they have another number of rows.
    """
    parts = 2 if is_guided else 1
    if len(embeds) not in (parts, parts * count):
        guided = ", under guidance after as many negative ones" if is_guided else ""
        raise ValueError(
            f"{name} has {len(embeds)} rows for {count} prompts; give one for each prompt, or one for all{guided}"
        )
    rows = embeds.unflatten(0, (parts, -1)).repeat_interleave(parts * count // len(embeds), 1)
    return (rows[1], rows[0]) if is_guided else (rows[0], None)


def masked_features(embeds: Tensor, attention_mask: Tensor, num_images_per_prompt: int) -> dict[str, Tensor]:
    """An encoding of prompts with its mask, one row each, given a row for each image."""
    features = {"encoder_hidden_states": embeds, "encoder_attention_mask": attention_mask}
    return repeat_rows(features, num_images_per_prompt)
