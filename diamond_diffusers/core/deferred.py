"""Checks of numbers on a device, which is waited for once for all of them.

To ask whether a number on a GPU is finite waits for everything that was asked of the GPU before, so that it stands idle
until the answer has led to its next task. A step asks many times. Within `deferred_checks` the answers stay on the
device until the end of the step, or until the step reads something there anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from .memory_errors import want_of_memory
from .tensors import sent

Fault = Callable[[], Exception]
"""Makes the exception of a check that fails."""

Pending = list[tuple[Tensor, Fault]]
"""Checks that are still to be settled: their flags, `[n]`, and what makes their exception."""

_pending: ContextVar[Pending | None] = ContextVar("pending", default=None)


def require(holds: Tensor, fault: Fault) -> None:
    """Raises an exception unless all of some flags hold: at once, or later within `deferred_checks`.

    Args:
        holds: booleans of any shape, on any device.
        fault: makes the exception. Until then it keeps what it refers to in memory: let that be little.
    """
    pending = _pending.get()
    if pending is not None:
        pending.append((holds.detach().reshape(-1), fault))
    elif not holds.all():
        raise fault()


@contextmanager
def deferred_checks() -> Iterator[None]:
    """Context whose checks are settled at its end, in the order in which they were made; contexts may be nested.

    An exception of another kind gives way to the fault of a check that was made before it, which may be its cause.

    Example:
        >>> with deferred_checks():
        ...     require(x.isfinite(), lambda: ValueError("x is not finite"))
        ...     y = x.sqrt()
    """
    if _pending.get() is not None:
        yield
        return
    token = _pending.set([])
    try:
        yield
        settle()
    except Exception as error:
        if want_of_memory(error) is None:
            settle()
        raise
    finally:
        _pending.reset(token)


@contextmanager
def checks_at_once() -> Iterator[None]:
    """Context whose checks wait for the device, for who has to know at once what failed."""
    settle()
    with own_checks():
        yield


@contextmanager
def own_checks() -> Iterator[None]:
    """Context apart from the one around it, whose checks stay pending: for a call that is made within another."""
    token = _pending.set(None)
    try:
        yield
    finally:
        _pending.reset(token)


@contextmanager
def faults_shown_to(see: Callable[[Exception], object]) -> Iterator[None]:
    """Context whose checks, should they fail later, show their exception before it is raised."""
    pending = _pending.get()
    count = 0 if pending is None else len(pending)
    yield
    if pending is not None:
        pending[count:] = [(holds, partial(_shown, fault, see)) for holds, fault in pending[count:]]


def _shown(fault: Fault, see: Callable[[Exception], object]) -> Exception:
    exception = fault()
    see(exception)
    return exception


def settle() -> None:
    """Raises the exception of the first check that has failed, of those that are still to be settled."""
    pending = _pending.get()
    if pending:
        _settle(pending, _flags(pending, pending[0][0].device).tolist())


def read(values: Tensor) -> Tensor:
    """Numbers of a floating dtype on the CPU, in one transfer with the checks that are still to be settled."""
    pending = _pending.get()
    if not pending:
        return values.detach().cpu()
    both = torch.cat([values.detach().flatten(), _flags(pending, values.device).to(values.dtype)]).cpu()
    _settle(pending, (both[values.numel() :] > 0).tolist())
    return both[: values.numel()].reshape(values.shape)


def _flags(pending: Pending, device: torch.device) -> Tensor:
    """The flags of all checks in their order, on a device."""
    return torch.cat([sent(holds, device) for holds, _ in pending])


def _settle(pending: Pending, flags: list[bool]) -> None:
    """Raises the exception of the first check of which not all `flags` hold; they are those of `_flags`."""
    ends = accumulate(holds.numel() for holds, _ in pending)
    # What the exceptions are made by may check, too.
    faults = [
        fault for (holds, fault), end in zip(pending, ends, strict=True) if not all(flags[end - holds.numel() : end])
    ]
    pending.clear()
    if faults:
        with checks_at_once():
            raise faults[0]()
