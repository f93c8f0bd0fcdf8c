"""Tells a want of memory from other errors."""

from __future__ import annotations

import sys

_CPU_WORDS = ("DefaultCPUAllocator", "Storage size calculation overflowed", "integer multiplication overflow")
"""In the errors of torch where the memory of the machine, or any machine, is too small."""


def want_of_memory(error: BaseException) -> str | None:
    """What was wanted, as the beginning of a sentence; None for an error of another kind."""
    # Not imported for the exit of a page of help, which is a RuntimeError too.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return ": ".join(str(error).rstrip(".").split(". ")[:2])
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in _CPU_WORDS)):
        return "the memory of this machine is too small"
    return None
