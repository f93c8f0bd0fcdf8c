"""A made-up accelerator that refuses on a CPU what only a GPU, or only some, would refuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import diamond_diffusers

DEVICE = torch.device("meta")
"""Stands for the accelerator, since torch has its name everywhere and no other tensors are on it."""

_PACKAGE = str(Path(diamond_diffusers.__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_COPIES = {torch.ops.aten._to_copy, torch.ops.aten.copy_}
# Torch moves indices from the CPU by itself.
_INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class _Placed(Tensor):
    """A tensor on the accelerator: a CPU tensor that says that it is elsewhere."""

    data_on_host: Tensor

    @staticmethod
    def __new__(cls, data: Tensor) -> _Placed:
        placed = Tensor._make_wrapper_subclass(
            cls,
            data.size(),
            strides=data.stride(),
            storage_offset=data.storage_offset(),
            dtype=data.dtype,
            device=DEVICE,
        )
        placed.data_on_host = data
        return placed

    # Those are without numbers; these have them.
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **options: Any) -> str:
        return f"on the accelerator: {self.data_on_host}"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} was called on the accelerator outside of `with Accelerator()`")


class Accelerator(TorchDispatchMode):
    """Context in which `DEVICE` is an accelerator; its tensors are made, moved and used as those of any other.

    It refuses, as errors: float64 tensors that code of the package puts there, of which Apple's GPU has none, and
    operations on tensors of both devices, unless the one on the CPU is a number without dimensions.

    Example:
        >>> with Accelerator():
        ...     torch.ones(2, device=DEVICE) + torch.ones(2)
        RuntimeError: aten.add.Tensor was given tensors on the accelerator and on the CPU
    """

    def __enter__(self) -> Self:
        # As every accelerator has one. Its draws are those of the CPU.
        torch.meta = SimpleNamespace(
            get_rng_state=lambda device: torch.get_rng_state(),
            set_rng_state=lambda state, device: torch.set_rng_state(state),
        )
        self._of_lists = _TensorsOfLists()
        self._of_lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._of_lists.__exit__(*error)
        del torch.meta
        super().__exit__(*error)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = kwargs.get("device")
        is_here = any(isinstance(tensor, _Placed) for tensor in tensors)
        goes_here = is_here if device is None else torch.device(device) == DEVICE
        if is_here or goes_here:
            self._check_devices(function, tensors)
        if device is not None and goes_here:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        made = function(*tree_map(_on_host, args), **tree_map(_on_host, kwargs))
        if not goes_here:
            return made
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float64:
                self._check_float64(function)
        return tree_map(_placed, made)

    def _check_devices(self, function: Any, tensors: Sequence[Tensor]) -> None:
        # Torch itself has made such a one, without numbers.
        assert not any(tensor.device == DEVICE for tensor in tensors if not isinstance(tensor, _Placed)), function
        packet = function.overloadpacket
        if packet in _COPIES or packet in _INDEXING:
            return
        strangers = [tensor for tensor in tensors if not isinstance(tensor, _Placed) and tensor.ndim > 0]
        if strangers and any(isinstance(tensor, _Placed) for tensor in tensors):
            raise RuntimeError(f"{function} was given tensors on the accelerator and on the CPU: {strangers[0].shape}")

    def _check_float64(self, function: Any) -> None:
        # Backward passes repeat the dtypes of forward passes, and networks of others are theirs.
        place = _caller()
        if place is not None and place[0].startswith(_PACKAGE):
            raise TypeError(f"{function} makes a float64 tensor on the accelerator at {place[0]}:{place[1]}")


class _TensorsOfLists(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU and moves them, as torch does for any other device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.new_tensor and isinstance(args[0], _Placed):
            function, kwargs = torch.tensor, {"dtype": args[0].dtype, "device": DEVICE, **kwargs}
            args = args[1:]
        if function is Tensor.__getitem__:
            args = (args[0], tree_map(_as_index, args[1], is_leaf=lambda index: isinstance(index, list)))
        makes = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if makes and kwargs.get("device") is not None and torch.device(kwargs["device"]) == DEVICE:
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        return function(*args, **kwargs)


def _caller() -> tuple[str, int] | None:
    """The place that has called it, outside of torch and of this file; None within a backward pass."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.endswith("autograd/graph.py"):
            return None
        if not file.startswith(_TORCH) and file != __file__:
            return file, frame.f_lineno
        frame = frame.f_back
    return None


def _on_host(value: Any) -> Any:
    return value.data_on_host if isinstance(value, _Placed) else value


def _as_index(index: Any) -> Any:
    return torch.tensor(index) if isinstance(index, list) else index


def _placed(value: Any) -> Any:
    if not isinstance(value, Tensor) or isinstance(value, _Placed):
        return value
    # What is conjugated later, by a mark on the tensor, is conjugated now: the mark would be hidden.
    return _Placed(value.resolve_conj().resolve_neg())
