"""Bytes that an evaluation takes: those that its autograd graph holds, and those that it works with on the way."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, UntypedStorage
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


@dataclass(frozen=True)
class MemoryUse:
    """What an evaluation takes beyond weights and arguments, which are there anyway.

    Attributes:
        graph: bytes that its autograd graph holds for the backward pass, each storage once.
        working: the most bytes at once of what it makes, its result included, if no graph held any of it.
    """

    graph: int = 0
    working: int = 0


def memory_use(function: Callable[..., Any], *inputs: Tensor) -> MemoryUse:
    """What evaluating `function(*inputs)` takes, counted while it is evaluated once.

    Nothing that its graph would hold is held, so that counting takes no more memory than an evaluation without
    gradients does. On the meta device it takes none at all, and weights and inputs may be of any size. What kernels
    take within themselves is not seen.

    Args:
        function: is evaluated once; its result cannot be differentiated.
        *inputs: its arguments; those that require gradients make a graph.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> memory_use(lambda x: x.exp().exp(), x)
        MemoryUse(graph=8000, working=8000)
    """
    counted = _Counted()
    with torch.autograd.graph.saved_tensors_hooks(counted.save, _refuse), counted:
        function(*inputs)
    return MemoryUse(counted.graph, counted.peak)


def peak_bytes(function: Callable[..., Any], *inputs: Tensor) -> int:
    """The most bytes at once of what evaluating `function(*inputs)` makes, with what its graphs hold meanwhile.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> peak_bytes(lambda x: torch.autograd.grad(x.exp().exp().sum(), x), x)
        12004
    """
    counted = _Counted()
    with counted:
        function(*inputs)
    return counted.peak


class _Counted(TorchDispatchMode):
    """Counts the storages that operations make: those that live at once, and those that graphs save.

    Attributes:
        graph: bytes that graphs save.
        peak: the most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = self.peak = self._live = 0
        # While a weak reference to a storage lives, no other storage has its number.
        self._made: dict[int, StorageWeakRef] = {}
        self._saved: set[int] = set()

    def __torch_dispatch__(
        self,
        operation: Any,
        kinds: Sequence[type],
        inputs: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = options or {}
        result = operation(*inputs, **options)
        given = {StorageWeakRef(storage).cdata for storage in _storages((inputs, options))}
        for storage in _storages(result):
            reference = StorageWeakRef(storage)
            # Views have the storage of an argument.
            if reference.cdata not in given and reference.cdata not in self._made:
                self._made[reference.cdata] = reference
                self._live += storage.nbytes()
                self.peak = max(self.peak, self._live)
                weakref.finalize(storage, self._end, storage.nbytes())
        return result

    def save(self, tensor: Tensor) -> None:
        """Counts a tensor that a graph saves, and lets it go."""
        for storage in _storages(tensor):
            number = StorageWeakRef(storage).cdata
            if number in self._made and number not in self._saved:
                self._saved.add(number)
                self.graph += storage.nbytes()

    def _end(self, size: int) -> None:
        self._live -= size


def _storages(values: Any) -> list[UntypedStorage]:
    """Those of all tensors within; none of tensors that wrap others, which have none of their own."""
    if isinstance(values, Tensor):
        return [] if is_traceable_wrapper_subclass(values) else [values.untyped_storage()]
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [storage for value in values for storage in _storages(value)]


def _refuse(packed: None) -> NoReturn:
    raise RuntimeError("memory_use holds no graph, so that its result cannot be differentiated")
