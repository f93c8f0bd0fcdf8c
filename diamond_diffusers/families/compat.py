"""Every private attribute of diffusers and peft that this package relies on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.utils.torch_utils import unwrap_module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

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
