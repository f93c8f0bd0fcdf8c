"""Tells a want of memory from other errors."""

from __future__ import annotations

import sys

_CPU_WORDS = ("DefaultCPUAllocator", "Storage size calculation overflowed", "integer multiplication overflow")
"""In the errors of torch where the memory of the machine, or any machine, is too small."""

_DEVICE_WORDS = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In the errors of torch where the memory of a device is too small, and which are no `OutOfMemoryError`."""


def want_of_memory(error: BaseException) -> str | None:
    """What was wanted, as the beginning of a sentence; None for an error of another kind."""
    # Not imported for the exit of a page of help, which is a RuntimeError too.
    torch = sys.modules.get("torch")
    is_runtime_error, message = isinstance(error, RuntimeError), str(error)
    is_of_device = is_runtime_error and any(words in message for words in _DEVICE_WORDS)
    if is_of_device or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return ": ".join(message.rstrip(".").split(". ")[:2])
    if isinstance(error, MemoryError) or (is_runtime_error and any(words in message for words in _CPU_WORDS)):
        return "the memory of this machine is too small"
    return None
