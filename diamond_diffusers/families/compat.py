"""The private attributes of diffusers, accelerate and peft that this package relies on, each in one function.

The private methods of one stock pipeline, such as how it packs latents, are called in the file of its family alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.group_offloading import (
    _GROUP_OFFLOADING,
    GroupOffloadingHook,
    _is_group_offload_enabled,
    _is_torchao_tensor,
)
from diffusers.hooks.layerwise_casting import _LAYERWISE_CASTING_HOOK, _PEFT_AUTOCAST_DISABLE_HOOK
from diffusers.utils.torch_utils import unwrap_module
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

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


class AdapterState:
    """Which adapters layers have active now, and how much each counts.

    Args:
        layers: with adapters or without.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._layers = [
            (layer, layer.active_adapters, layer.disable_adapters, dict(_scaling(layer)))
            for layer in layers
            if isinstance(layer, BaseTunerLayer)
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Context in which they are as they were."""
        now = AdapterState(layer for layer, *_ in self._layers)
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        for layer, active, disabled, scaling in self._layers:
            activate_adapters(layer, active, disabled)
            _scaling(layer).update(scaling)


def _scaling(layer: BaseTunerLayer) -> dict[str, float]:
    """The factor of each adapter of a layer; some kinds of adapters have none."""
    scaling: dict[str, float] = getattr(layer, "scaling", {})
    return scaling


def checkpointed_by(network: Any, function: Callable[..., Any]) -> Callable[[], object]:
    """Has a diffusers model evaluate its blocks by a function of (block, *arguments) where gradients are wanted.

    Returns:
        A function that has it evaluate them as before.
    """
    if not getattr(network, "_supports_gradient_checkpointing", False):
        return lambda: None
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    modules = [module for module in network.modules() if hasattr(module, names[0])]
    former = [{name: vars(module)[name] for name in names if name in vars(module)} for module in modules]
    network.enable_gradient_checkpointing(function)

    def undo() -> None:
        for module, values in zip(modules, former, strict=True):
            # Never without those that it had, which other threads may look at meanwhile.
            vars(module).update(values)
            for name in names:
                if name not in values:
                    vars(module).pop(name, None)

    return undo


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled as a whole, in place or around it."""
    return unwrap_module(module) is not module or module._compiled_call_impl is not None


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


def moves_weights(module: nn.Module) -> bool:
    """Whether diffusers puts weights of a module elsewhere, or in another precision, while they are not in use.

    Group offloading and layerwise casting do so within the parameters themselves. Sequential offloading puts others in
    their place.
    """
    registries = [registry for part in module.modules() if (registry := _hooks_of(part)) is not None]
    names = (_GROUP_OFFLOADING, _LAYERWISE_CASTING_HOOK)
    return any(registry.get_hook(name) is not None for registry in registries for name in names)


def cast_layerwise(network: Any, storage_dtype: torch.dtype, compute_dtype: torch.dtype) -> None:
    """Has a diffusers model keep its weights in one dtype, and cast each to another while it is used.

    Adapters stay in their own precision, and what goes into them is cast to it. diffusers has peft leave that cast out,
    for adapters whose weights it would have cast too.
    """
    network.enable_layerwise_casting(storage_dtype, compute_dtype)
    HookRegistry.check_if_exists_or_initialize(network).remove_hook(_PEFT_AUTOCAST_DISABLE_HOOK)


def group_offloading_hook(module: nn.Module) -> GroupOffloadingHook | None:
    """The hook of a module by which it is offloaded with a group, if it has one."""
    registry = _hooks_of(module)
    hook: GroupOffloadingHook | None = None if registry is None else registry.get_hook(_GROUP_OFFLOADING)
    return hook


def _hooks_of(module: nn.Module) -> HookRegistry | None:
    # Looked up as torch's modules do it, but without the exception, which costs more than all else.
    registry: HookRegistry | None = vars(module).get("_diffusers_hook")
    return registry


def is_quantised_by_torchao(tensor: Tensor) -> bool:
    """Whether a tensor is one of torchao's, which holds its numbers in tensors within."""
    return bool(_is_torchao_tensor(tensor))


def quantises_activations(module: nn.Module) -> bool:
    """Whether torchao quantises what goes into layers of a module, too: their results then have no derivative."""
    weights = (weight for weight in module.parameters() if is_quantised_by_torchao(weight))
    return any(getattr(weight, "act_quant_kwargs", None) is not None for weight in weights)


def _offloads(hook: Any) -> bool:
    """Whether an accelerate hook offloads; sequential offloading puts such hooks on the innermost modules."""
    return getattr(hook, "offload", False) or any(_offloads(part) for part in getattr(hook, "hooks", ()))
