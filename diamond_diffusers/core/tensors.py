"""Small operations on rows of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT64_DEVICES = ("cpu", "cuda")
"""Kinds of devices that have float64: of Apple's GPU and some of Intel's none has. Only what must be exact uses it."""


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which states of `x` are combined: float32, or float64 where `x` is float64."""
    return torch.promote_types(x.dtype, torch.float32)


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device and in a dtype, its own by default; from the CPU it is cast and sent without waiting."""
    if tensor.device.type != "cpu":
        # On the way to the CPU, numbers that are not waited for would be wrong.
        return tensor.to(device, dtype)
    # On MPS too: its copies do not hold what they read.
    tensor = tensor if dtype is None else tensor.to(dtype)
    return tensor.to(device, non_blocking=device.type != "mps")


def expand(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient of shape `[]` or `[B]`, shaped to multiply the rows of `x`; products have the working dtype."""
    if coefficient.ndim == 0 and x.dtype == working_dtype(x):
        return coefficient
    return sent(coefficient, x.device, working_dtype(x)).reshape(-1, *[1] * (x.ndim - 1))


def repeat_each(rows: Tensor, count: int) -> Tensor:
    """`count` consecutive copies of each row; a level for all rows stays one, and single rows are not copied."""
    return rows if rows.ndim == 0 or count == 1 else rows.repeat_interleave(count, 0)


def row_dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner products of rows, `[N]`: float64 on the CPU, and float32 on accelerators, some of which have no other.

    Their terms nearly cancel in the log-weights, which float32 leaves right to about 1e-7 of the number of elements.
    """
    return (first * second).flatten(1).sum(1, dtype=torch.float64 if first.device.type == "cpu" else torch.float32)


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Values on a device; of float64 ones, which not every accelerator has, float32 on any but the CPU."""
    narrows = values.dtype == torch.float64 and device.type != "cpu"
    return sent(values, device, torch.float32 if narrows else None)


def to_unit_range(images: Tensor) -> Tensor:
    """Decoded images in [-1, 1], brought to [0, 1] in float32 or wider."""
    return (images.to(working_dtype(images)) / 2 + 0.5).clamp(0, 1)


def where_rows(marked: Tensor, chosen: Tensor, otherwise: Tensor) -> Tensor:
    """Rows `[N, ...]`: the chosen ones where they are marked, `[N]` or `[]` for all alike, and the others elsewhere."""
    return torch.where(sent(marked, chosen.device).reshape(-1, *[1] * (chosen.ndim - 1)), chosen, otherwise)


def finite_rows(x: Tensor) -> Tensor:
    """Whether all numbers of each row of `[N, ...]` are finite, `[N]`."""
    rows = x.detach().flatten(1)
    # Much faster on a CPU than to look at each number for itself; NaN is the largest and the smallest of its row, and
    # compares as false.
    largest = torch.finfo(x.dtype).max
    return (rows.amax(1) <= largest) & (rows.amin(1) >= -largest)


def at_least_float32(x: Tensor) -> Tensor:
    """`x` itself, or in float32 where its dtype is narrower."""
    return x.to(working_dtype(x))
