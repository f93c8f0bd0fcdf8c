"""Frozen weights that an autograd graph keeps as they were when they were used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class WeightsAsUsed(TorchFunctionMode):
    """Context in which graphs keep frozen weights as they are used, whatever becomes of them before the backward pass.

    A graph otherwise keeps a frozen weight by its name alone, so to speak: the parameter itself, not its numbers. Where
    weights are on the device or in the precision of the computation only while a layer is evaluated, as with group
    offloading and layerwise casting, the backward pass would find them elsewhere, or in another precision. Here each
    operation that is recorded is given an alias of the weight's numbers.

    Args:
        dtype: in which operations of float16 weights are computed, recorded or not; None for their own.
        streams: whether weights come by a stream of their own, whose memory must not be used again before the backward
            pass is done with it.

    Example:
        >>> layer = torch.nn.Linear(1, 1, bias=False).requires_grad_(False)
        >>> x = torch.ones(1, requires_grad=True)
        >>> with WeightsAsUsed():
        ...     y = layer(x).square()
        >>> weight = layer.weight.item()
        >>> layer.weight.data = torch.zeros(1, 1)
        >>> bool(torch.autograd.grad(y, x)[0] == 2 * weight**2)
        True
    """

    def __init__(self, dtype: torch.dtype | None = None, streams: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.streams = streams

    def __torch_function__(
        self,
        function: Callable[..., Any],
        kinds: Sequence[type],
        inputs: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        given = [value for value in (*inputs, *options.values()) if isinstance(value, Tensor)]
        is_recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        casts = self.dtype is not None and any(
            isinstance(tensor, nn.Parameter) and tensor.dtype == torch.float16 for tensor in given
        )
        if (is_recorded or (casts and len(given) > 1)) and not _changes(function, options):
            inputs = tuple(self._as_used(value, casts) for value in inputs)
            options = {name: self._as_used(value, casts) for name, value in options.items()}
        return function(*inputs, **options)

    def _as_used(self, value: Any, casts: bool) -> Any:
        if not isinstance(value, Tensor):
            return value
        if not value.requires_grad:
            value = value.detach()
            if self.streams and value.device.type != "cpu":
                value.record_stream(torch.get_device_module(value.device).current_stream(value.device))
        return value.to(self.dtype) if casts and value.dtype == torch.float16 else value


def _changes(function: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether an operation writes to a tensor that it is given, which an alias or a copy would not show."""
    name = getattr(function, "__name__", "")
    if name.startswith("__"):
        return name.startswith("__i") or name in ("__setitem__", "__set__")
    return name.endswith("_") or options.get("out") is not None
