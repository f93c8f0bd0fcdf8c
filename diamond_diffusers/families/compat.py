"""The private attributes of diffusers, accelerate and peft that this package relies on, each in one function.

The private methods of one stock pipeline, such as how it packs latents, are called in the file of its family alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.utils.torch_utils import unwrap_module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

_lock = threading.Lock()


_network_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def alone_with(network: nn.Module) -> threading.RLock:
    """A lock that one thread holds while it evaluates a network, or encodes prompts for it.

    Otherwise other threads might change its adapters and hooks meanwhile, or those of the text encoders.
    """
    with _lock:
        return _network_locks.setdefault(unwrap_module(network), threading.RLock())


_dtypes: WeakKeyDictionary[nn.Module, tuple[torch.dtype | None, torch.dtype]] = WeakKeyDictionary()


def compute_dtype(module: Any, looks_again: bool = False) -> torch.dtype:
    """The `dtype` of a model of diffusers, which looks through all of its parts each time; here once a call.

    Args:
        module: the model.
        looks_again: whether its parts may have changed though its first weight has not, as by layerwise casting.
    """
    first = next(module.parameters(), None)
    stored = None if first is None else first.dtype
    known = _dtypes.get(module)
    if looks_again or known is None or known[0] != stored:
        known = _dtypes[module] = stored, module.dtype
    return known[1]


@contextmanager
def adapters_disabled(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Context in which a model is without some of its LoRA adapters; the others stay active, with their weights."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    active = [layer.active_adapters for layer in layers]
    for layer, adapters in zip(layers, active, strict=True):
        activate_adapters(layer, [name for name in adapters if name not in names], layer.disable_adapters)
    try:
        yield
    finally:
        for layer, adapters in zip(layers, active, strict=True):
            activate_adapters(layer, adapters, layer.disable_adapters)


def activate_adapters(layer: BaseTunerLayer, names: Sequence[str], disabled: bool = False) -> None:
    """Activates exactly these adapters of a layer, or keeps them for later where the layer is disabled.

    peft's own `set_adapter` would also set `requires_grad`, which `torch.func` forbids inside its transforms, and its
    `enable_adapters` would set it for every adapter.
    """
    layer._active_adapter, layer._disable_adapters = list(names), disabled


def execution_device(pipeline: Any) -> torch.device:
    """The device on which a stock pipeline computes: `pipeline.device` is the CPU while components are offloaded."""
    return pipeline._execution_device


@contextmanager
def progress_bar(pipeline: Any, **options: Any) -> Iterator[None]:
    """Gives the progress bar of a stock pipeline further options for a while, such as `disable=True`."""
    former = dict(getattr(pipeline, "_progress_bar_config", {}))
    pipeline.set_progress_bar_config(**{**former, **options})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**former)


def offloads_layers(module: nn.Module) -> bool:
    """Whether parts of a module are moved on and off the device: sequential offloading, or that of groups of layers."""
    return _is_group_offload_enabled(module) or any(
        _offloads(getattr(part, "_hf_hook", None)) for part in module.modules()
    )


def _offloads(hook: Any) -> bool:
    """Whether an accelerate hook offloads; sequential offloading puts such hooks on the innermost modules."""
    return getattr(hook, "offload", False) or any(_offloads(part) for part in getattr(hook, "hooks", ()))
