"""How rows are evaluated: in chunks, checkpointed, spread over processes; and the bill."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.cost import Cost
from .interruption import Interrupted, never
from .processes import Chunk, ParticleShards

Result = TypeVar("Result")


@dataclass(frozen=True)
class Execution:
    """Evaluates any number of rows in chunks of one size, and counts what a run costs.

    The last chunk is filled up, so that a row's result does not depend on how many others there are.

    Args:
        particle_batch_size: rows of one network, decoder or reward call; None for all at once.
        gradient_checkpointing: whether network, decoder and reward are evaluated again on the backward pass, instead
            of holding what they computed.
        shards: the processes over which chunks are spread; None where this one evaluates them all.
        cost: of everything that is evaluated so.
        is_interrupted: asked before each chunk whether the run is to end here; processes that share a run are not
            asked, since they have to end together.

    Raises:
        ValueError: `particle_batch_size` is below 1.

    Example:
        >>> execution = Execution(particle_batch_size=2)
        >>> execution.over_chunks(lambda index, kept, rows: 2 * rows[:kept], torch.arange(3))
        tensor([0, 2, 4])
    """

    particle_batch_size: int | None = None
    gradient_checkpointing: bool = False
    shards: ParticleShards | None = None
    cost: Cost = field(default_factory=Cost)
    is_interrupted: Callable[[], bool] = never

    def __post_init__(self) -> None:
        if self.particle_batch_size is not None and self.particle_batch_size < 1:
            raise ValueError(
                f"particle_batch_size is {self.particle_batch_size}; give at least 1, or None for no limit"
            )

    def rows_at_once(self, num_rows: int) -> int:
        """How many of `num_rows` rows all processes together evaluate at a time."""
        if self.particle_batch_size is None:
            return num_rows
        return self.particle_batch_size * (self.shards.num_processes if self.shards is not None else 1)

    def over_chunks(self, function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
        """Rows through a function of (index, kept, rows) of a chunk, which returns what is kept of it.

        Raises:
            Interrupted: the run is to end here.
        """

        def evaluate_chunk(index: Tensor, kept: int, *rows: Tensor) -> Tensor:
            if self.shards is None and self.is_interrupted():
                raise Interrupted
            return function(index, kept, *(row[index] for row in rows))

        def evaluate(chunks: Sequence[Chunk], *rows: Tensor) -> Tensor:
            return torch.cat([evaluate_chunk(index, kept, *rows) for index, kept in chunks])

        chunks = self.chunks(rows[0])
        return evaluate(chunks, *rows) if self.shards is None else self.shards.evaluate(evaluate, chunks, *rows)

    def chunks(self, x: Tensor) -> list[Chunk]:
        """Indices that cover the rows of `x` in chunks, the last filled up with its last row, and how many to keep."""
        num_processes = self.shards.num_processes if self.shards is not None else 1
        size = self.particle_batch_size or math.ceil(len(x) / num_processes)
        starts = range(0, len(x), size)
        positions = torch.arange(size, device=x.device)
        return [((start + positions).clamp(max=len(x) - 1), min(size, len(x) - start)) for start in starts]

    def checkpointed(self, function: Callable[..., Result], index: Tensor, *rows: Tensor) -> Result:
        """`function(index, *rows)`, evaluated again on the backward pass where that is wanted."""
        if self.gradient_checkpointing and torch.is_grad_enabled() and any(row.requires_grad for row in rows):
            evaluated: Result = checkpoint(function, index, *rows, use_reentrant=False)
            return evaluated
        return function(index, *rows)
