"""A pretended accelerator, computed on the CPU, which counts for what the host waits.

Its tensors say that they are on the device `lazy`, whose backward passes run in the calling thread. Everything that
would wait on a GPU is noted: numbers that are read, and tensors that are sent there without `non_blocking`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.library import _scoped_library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("lazy:0")
CPU = torch.device("cpu")
READING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")
_waits: list[str] = []


class OnDevice(Tensor):
    """A tensor on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        made = Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **options)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _evaluated(function, args, kwargs or {})

    def tolist(self) -> Any:
        _note()
        return self.inner.tolist()


class _Everywhere(TorchDispatchMode):
    """Sees what is made on the device, or sent there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _evaluated(function, args, kwargs or {})


@contextmanager
def waiting_device() -> Iterator[list[str]]:
    """The names of the functions of the package that wait, as long as the context is open."""
    state = SimpleNamespace(get_rng_state=lambda device: torch.zeros(1), set_rng_state=lambda state, device: None)
    with (
        mock.patch.object(torch, "lazy", state, create=True),
        _scoped_library("aten", "IMPL") as library,
        _Everywhere(),
    ):
        # What `torch.tensor(..., device=...)` calls, which no mode sees.
        library.impl("empty_strided", lambda size, stride, **_: OnDevice(torch.empty_strided(size, stride)), "Lazy")
        library.impl(
            "_to_copy", lambda x, **options: _evaluated(torch.ops.aten._to_copy.default, (x,), options), "Lazy"
        )
        _waits.clear()
        yield _waits


def _note() -> None:
    frame: FrameType | None = sys._getframe()
    while frame is not None and "diamond_diffusers" not in frame.f_code.co_filename:
        frame = frame.f_back
    _waits.append("elsewhere" if frame is None else frame.f_code.co_name)


def _evaluated(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = function.overloadpacket.__name__, tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    is_there = any(isinstance(tensor, OnDevice) for tensor in tensors)
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if _waits_for(name, args, kwargs, is_there, target):
        _note()
    if is_there and name not in ("_to_copy", "copy_", "index"):
        for tensor in tensors:
            if not isinstance(tensor, OnDevice) and tensor.ndim:
                raise RuntimeError(f"{name} is asked of tensors on {DEVICE} and on the CPU")
    if target is not None:
        kwargs = {**kwargs, "device": CPU}
    result = function(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    stays = target == DEVICE if target is not None else is_there
    wrapped = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, OnDevice)}

    def wrap(value: Any) -> Any:
        # What is changed in place stays the same tensor.
        if not isinstance(value, Tensor):
            return value
        return wrapped[id(value)] if id(value) in wrapped else OnDevice(value)

    return tree_map(wrap, result) if stays else result


def _evaluated_by_name(function: Any, *args: Any, **kwargs: Any) -> Any:
    return _evaluated(function, args, kwargs)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _waits_for(name: str, args: Any, kwargs: dict[str, Any], is_there: bool, target: torch.device | None) -> bool:
    if name == "_to_copy" and target is not None:
        return target != DEVICE if is_there else target == DEVICE and not kwargs.get("non_blocking")
    if name == "copy_":
        return isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and args[1].ndim > 0
    if name == "index" and is_there:
        # Of masks the number of rows is read, and indices on the CPU are sent.
        indices = [index for index in args[1] if index is not None]
        return any(not isinstance(index, OnDevice) or index.dtype == torch.bool for index in indices)
    return is_there and name in READING
