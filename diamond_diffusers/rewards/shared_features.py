"""Features that several terms of one sum use, computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_memory: ContextVar[dict[Hashable, tuple[Any, ...]] | None] = ContextVar("features of one evaluation", default=None)


@contextmanager
def one_evaluation() -> Iterator[None]:
    """Context in which `features_of` computes equal features once; they are forgotten at the end.

    Use it only for scores whose graphs are traversed together, since the terms share one graph.
    """
    if _memory.get() is not None:
        yield
        return
    token = _memory.set({})
    try:
        yield
    finally:
        _memory.reset(token)


def features_of(images: Tensor, compute: Callable[[Tensor], Tensor], *owners: object) -> Tensor:
    """`compute(images)`, or its earlier result in the same evaluation for the same memory, owners and kind of graph.

    Args:
        images: any tensor.
        compute: a function that depends on the images and the owners alone.
        owners: the objects that define `compute`, such as a model and its preprocessing.
    """
    memory = _memory.get()
    # Inference tensors do not count their changes.
    if memory is None or images.is_inference():
        return compute(images)
    place = images.device, images.data_ptr(), images.shape, images.stride(), images.dtype, images._version
    key = *map(id, owners), *place, images.requires_grad, torch.is_grad_enabled()
    if key not in memory:
        # Holding on to images and owners keeps their addresses from being used again.
        memory[key] = compute(images), images, owners
    return memory[key][0]
