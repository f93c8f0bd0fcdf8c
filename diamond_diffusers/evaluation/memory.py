"""The most memory that a piece of work has held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

# Linux lets a process forget the peak of its own memory.
_FORGET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class PeakMemory:
    """The result of `peak_memory`, set when the work is done.

    Attributes:
        bytes: the most memory that torch had allocated on a GPU, weights included, or on a CPU the largest resident
            set of the process; None on a system that does not report it, as on MPS.
    """

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Context that measures the most memory that the work inside of it has held."""
    peak = PeakMemory()
    if device.type in ("cuda", "xpu"):
        torch.accelerator.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.accelerator.max_memory_allocated(device)
        return
    can_tell = device.type == "cpu" and _forget_peak()
    yield peak
    if can_tell:
        kibibytes = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")).split()[1]
        peak.bytes = 1024 * int(kibibytes)


def _forget_peak() -> bool:
    try:
        _FORGET.write_text("5")
    except OSError:
        return False
    return True
