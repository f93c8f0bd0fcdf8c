"""Cached rows as training reads them: from the memory of the device, or from the files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from accelerate.utils import release_memory
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...alignment.free_memory import free_memory as free_bytes
from ...core.memory_errors import want_of_memory
from ..errors import TrainingError
from .cache import ShardedCache

logger = logging.getLogger(__name__)

Location = Literal["auto", "device", "disk"]

SHARE_OF_FREE_MEMORY = 0.5
"""That a pool may take; training needs the rest."""


class Pool(ABC):
    """Cached rows, which are read by their places."""

    @abstractmethod
    def batches(self, places: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        """The rows at places, each `[B]`, as tensors `[B, ...]` on the training device, but for float64 on the CPU."""


class DevicePool(Pool):
    """All rows in the memory of a device, from which a batch is gathered without any copy from the host.

    Noise levels are in float64, which not every device has, and stay on the CPU.

    Args:
        cache: the rows; they are copied shard by shard.
        device: the device.
    """

    def __init__(self, cache: ShardedCache, device: torch.device) -> None:
        self.device = device
        self.tensors: dict[str, Tensor] = {}
        for shard in range(cache.num_shards):
            places = cache.places(shard)
            for name, kept in cache.read(shard).items():
                if shard == 0:
                    home = device if kept.dtype != torch.float64 else None
                    self.tensors[name] = torch.empty(cache.num_rows, *kept.shape[1:], dtype=kept.dtype, device=home)
                self.tensors[name][places.start : places.stop] = kept[: len(places)]

    def batches(self, places: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        for index in places:
            here = index.to(self.device, non_blocking=True)
            yield {name: kept[index if kept.dtype == torch.float64 else here] for name, kept in self.tensors.items()}


class DiskPool(Pool, Dataset[Any]):
    """Rows in their files, which the system keeps in memory as far as it has room.

    Args:
        cache: the rows.
        device: device that batches are copied to.
        num_workers: processes that read batches ahead.
    """

    def __init__(self, cache: ShardedCache, device: torch.device, num_workers: int = 0) -> None:
        self.cache, self.device, self.num_workers = cache, device, num_workers
        self._shards: dict[int, dict[str, Tensor]] = {}

    def batches(self, places: Iterable[Tensor]) -> Iterator[dict[str, Tensor]]:
        # A batch is one item of the loader, so that its rows are gathered at once.
        loader = DataLoader(self, batch_size=None, sampler=places, num_workers=self.num_workers)
        return map(self._on_device, iter(loader))

    def _on_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: kept if kept.dtype == torch.float64 else kept.to(self.device, non_blocking=True)
            for name, kept in batch.items()
        }

    def __getitem__(self, places: Tensor) -> dict[str, Tensor]:
        shards, rows = places // self.cache.shard_size, places % self.cache.shard_size
        batch: dict[str, Tensor] = {}
        for shard in shards.unique().tolist():
            here = shards == shard
            for name, kept in self._shard(shard).items():
                if name not in batch:
                    batch[name] = torch.empty(len(places), *kept.shape[1:], dtype=kept.dtype)
                batch[name][here] = kept[rows[here]]
        return batch

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            self._shards[shard] = self.cache.read(shard)
        return self._shards[shard]


def open_pool(cache: ShardedCache, device: torch.device, location: Location, num_workers: int) -> Pool:
    """The pool of a cache at a location; `auto` is an accelerator's memory where the rows fit, else the disk.

    Raises:
        TrainingError: the memory of the device does not hold the rows.
    """
    size = size_in_memory(cache)
    if location == "auto":
        location = "device" if size <= SHARE_OF_FREE_MEMORY * free_memory(device) else "disk"
        logger.info("reading %.1f MB of cached rows from the %s", size / 1e6, location)
    if location == "disk":
        return DiskPool(cache, device, num_workers)
    try:
        return DevicePool(cache, device)
    except (RuntimeError, MemoryError) as error:
        reason = want_of_memory(error)
        if reason is None:
            raise
        raise TrainingError(
            f"--cache_location is device, whose memory does not hold {size / 1e9:.2f} GB of cached rows ({reason}); "
            "take auto or disk, or --cache_dtype float16"
        ) from error


def size_in_memory(cache: ShardedCache) -> int:
    """Bytes of all rows."""
    rows = cache.read(0)
    count = len(next(iter(rows.values())))
    return sum(kept.nbytes for kept in rows.values()) * cache.num_rows // count


def free_memory(device: torch.device) -> int:
    """Free bytes of an accelerator; 0 for the CPU, in whose memory the system keeps the files already."""
    if device.type == "cpu":
        return 0
    # What torch keeps for later is free, too.
    release_memory()
    return free_bytes(device)
