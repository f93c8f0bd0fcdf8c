"""Decides which rows of a dataset come in which batch, so that a resumed run continues where it stopped."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..errors import TrainingError
from .hub import HubDataset
from .rows import Captioned, CaptionedImages


@dataclass(frozen=True)
class Order:
    """The order in which a process sees the rows: a new permutation for every epoch, the same at every start.

    Args:
        num_rows: number of rows of the dataset.
        batch_size: batch size of one process.
        process_index, num_processes: index of this process, and number of all.
        seed: seed of the permutations.
    """

    num_rows: int
    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    seed: int = 0

    def permutation(self, epoch: int) -> Tensor:
        """The rows in the order of an epoch, `[num_rows]`."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.num_rows, generator=generator)

    def rows(self, first_batch: int) -> Iterator[Tensor]:
        """The rows of this process, batch by batch, each `[batch_size]`."""
        epoch, permutation = -1, torch.empty(0)
        for batch in itertools.count(first_batch):
            position, pieces = self._start(batch), []
            missing = self.batch_size
            while missing:
                if position // self.num_rows != epoch:
                    epoch = position // self.num_rows
                    permutation = self.permutation(epoch)
                place = position % self.num_rows
                pieces.append(permutation[place : place + missing])
                position += len(pieces[-1])
                missing -= len(pieces[-1])
            yield torch.cat(pieces)

    def batches(self, first_batch: int) -> Iterator[list[tuple[int, int]]]:
        """Row and position of each item, batch by batch; positions count all items of all processes."""
        for batch, rows in enumerate(self.rows(first_batch), first_batch):
            yield [(row, position) for position, row in enumerate(rows.tolist(), self._start(batch))]

    def _start(self, batch: int) -> int:
        return (batch * self.num_processes + self.process_index) * self.batch_size


class _Prepared(Dataset[Any]):
    """Rows by `(index, position)`; all randomness of an item follows from the seed and its position."""

    def __init__(self, rows: CaptionedImages, prepare: Any, seed: int) -> None:
        self.rows, self.prepare, self.seed = rows, prepare, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, position = item
        try:
            return self.prepare(self.rows[index], random.Random(f"{self.seed} {position}"))
        except TrainingError as error:
            # The loader would put the traceback of its process into the message.
            return error


class _Streamed(IterableDataset[Any]):
    """The part of a streamed dataset that a process sees, starting at an item."""

    def __init__(self, rows: HubDataset, prepare: Any, order: Order, first_item: int) -> None:
        self.rows, self.prepare, self.order, self.first_item = rows, prepare, order, first_item

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        everything = (row for epoch in itertools.count() for row in _not_empty(self.rows.stream(epoch), self.rows.name))
        own = itertools.islice(everything, self.order.process_index, None, self.order.num_processes)
        for position, row in enumerate(own):
            if position >= self.first_item:
                seed = f"{self.order.seed} {self.order.process_index} {position}"
                yield self.prepare(row, random.Random(seed))


def _not_empty(rows: Iterator[Captioned], name: str) -> Iterator[Captioned]:
    first = next(rows, None)
    if first is None:
        raise TrainingError(f"{name} is empty")
    return itertools.chain([first], rows)


def batches_from(
    rows: Any, prepare: Any, order: Order, first_batch: int, num_workers: int, streaming: bool
) -> Iterator[Any]:
    """Endless batches of prepared rows, starting at a batch: lists of the results of `prepare`."""
    if streaming:
        streamed = _Streamed(rows, prepare, order, first_batch * order.batch_size)
        return iter(DataLoader(streamed, batch_size=order.batch_size, collate_fn=list))
    return prepared_lists(rows, prepare, order.batches(first_batch), order.seed, num_workers)


def prepared_lists(
    rows: CaptionedImages, prepare: Any, lists: Iterable[list[tuple[int, int]]], seed: int, num_workers: int
) -> Iterator[list[Any]]:
    """Prepared rows in lists.

    Args:
        lists: for each list the number of each row, and the position by which its randomness is told from others'.
        seed: seed of that randomness.
        num_workers: processes that prepare rows ahead.
    """
    loader = DataLoader(_Prepared(rows, prepare, seed), batch_sampler=lists, collate_fn=list, num_workers=num_workers)
    return _without_errors(iter(loader))


def _without_errors(batches: Iterator[list[Any]]) -> Iterator[list[Any]]:
    """Raises the first error that a batch holds in place of a row."""
    for batch in batches:
        error = next((row for row in batch if isinstance(row, TrainingError)), None)
        if error is not None:
            try:
                raise error
            finally:
                # The traceback holds this frame. While that holds the error, only a garbage collection could free the
                # loader, which then waits five seconds for its processes.
                del error, batch
        yield batch
