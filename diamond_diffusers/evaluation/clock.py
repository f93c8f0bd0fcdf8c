"""The seconds that processors worked on a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass
class CPUTime:
    """The result of `cpu_time`, set when the work is done.

    Attributes:
        seconds: that the processors worked on it, summed over the threads of the process: other processes lengthen them
            through caches alone. None where the work is done on a GPU, which they do not say.
    """

    seconds: float | None = None


@contextmanager
def cpu_time(device: torch.device) -> Iterator[CPUTime]:
    """Context that measures the processors' time of the work inside of it.

    Args:
        device: on which the work is done.
    """
    spent, began = CPUTime(), time.process_time()
    yield spent
    if device.type == "cpu":
        spent.seconds = time.process_time() - began
