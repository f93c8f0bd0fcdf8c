"""How rows are evaluated: in chunks, checkpointed, spread over processes; and the bill."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from itertools import accumulate
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.cost import Cost, charged_to
from ..core.interruption import Interrupted, ended_by, never
from ..core.pending import Pending, in_order
from .processes import Chunk, ParticleShards

Result = TypeVar("Result")


@dataclass
class Memory:
    """What a run has learned of the memory that it has; see `out_of_memory.with_smaller_chunks`.

    Attributes:
        max_rows: the most rows that are evaluated at once; None as long as memory has sufficed.
        largest: the most rows that were evaluated at once, or whose graphs were held at once, by what is watched.
        is_watched: whether something is being evaluated that can be evaluated again in smaller chunks.
    """

    max_rows: int | None = None
    largest: int = 0
    is_watched: bool = False


@dataclass(frozen=True)
class Checkpointing:
    """The parts that are evaluated again on the backward pass, instead of holding what they computed.

    Each part that is takes less memory and more time. Networks and decoders of diffusers are evaluated again block by
    block, so that the graph of one block is all that is held. The gradients are the same.

    Args:
        network: whether the network is.
        decoder: whether the decoder is.
        reward: whether the reward is.

    Example:
        >>> Checkpointing.of_all(True)
        Checkpointing(network=True, decoder=True, reward=True)
        >>> Checkpointing(decoder=True).is_complete
        False
    """

    network: bool = False
    decoder: bool = False
    reward: bool = False

    @classmethod
    def of_all(cls, is_wanted: bool) -> Self:
        """Checkpointing of all parts, or of none."""
        return cls(is_wanted, is_wanted, is_wanted)

    @property
    def is_complete(self) -> bool:
        """Whether every part is evaluated again."""
        return all(astuple(self))


@dataclass(frozen=True)
class Execution:
    """Evaluates any number of rows in chunks, and counts what a run costs.

    Rows come in groups, which are those of one image, or a part of them. With a `particle_batch_size` a chunk holds
    rows of one group alone: an image is evaluated by the calls that it would be evaluated by alone, of as many rows
    each, so that it is the same, bit for bit, whatever else is in the batch, and no row is evaluated to no purpose.
    Kernels round by the number of rows of a call. So without one, where a call holds the rows of all images, an image
    depends on the number of the others, by rounding.

    Args:
        particle_batch_size: the most rows of one network, decoder or reward call, all of them of one image; None for
            the rows of all images at once.
        gradient_checkpointing: which of network, decoder and reward are evaluated again on the backward pass.
        shards: the processes over which chunks are spread; None where this one evaluates them all.
        cost: of everything that is evaluated so.
        is_interrupted: asked before each chunk whether the run is to end here; processes that share a run are not
            asked, since they have to end together.
        memory: what the run has learned of it.

    Raises:
        ValueError: `particle_batch_size` is below 1.

    Example:
        >>> execution = Execution(particle_batch_size=2)
        >>> [list(chunk) for chunk in execution.chunks([3, 3])]
        [[0, 1], [2], [3, 4], [5]]
        >>> execution.over_chunks(lambda index, rows: 2 * rows, [3, 3], torch.arange(6))
        tensor([ 0,  2,  4,  6,  8, 10])
    """

    particle_batch_size: int | None = None
    gradient_checkpointing: Checkpointing = field(default_factory=Checkpointing)
    shards: ParticleShards | None = None
    cost: Cost = field(default_factory=Cost)
    is_interrupted: Callable[[], bool] = never
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        if self.particle_batch_size is not None and self.particle_batch_size < 1:
            raise ValueError(
                f"particle_batch_size is {self.particle_batch_size}; give at least 1, or None for no limit"
            )

    @property
    def max_rows(self) -> int | None:
        """The most rows of a call: what was asked for, or what memory holds."""
        sizes = [size for size in (self.particle_batch_size, self.memory.max_rows) if size is not None]
        return min(sizes, default=None)

    @property
    def num_processes(self) -> int:
        return 1 if self.shards is None else self.shards.num_processes

    def chunks(self, groups: Sequence[int]) -> list[range]:
        """The rows of consecutive groups, of which these are the sizes, in chunks."""
        groups = self._kept_apart(groups)
        sizes = _cut(groups, self.max_rows or math.ceil(sum(groups) / self.num_processes))
        return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]

    def parts(self, groups: Sequence[int], num_copies: int = 1) -> Iterator[tuple[int, ...]]:
        """The groups in consecutive parts that all processes evaluate at a time, of which each holds one chunk's graph.

        Args:
            groups: their sizes.
            num_copies: how many rows stand for each row in what is evaluated, all of them in one part.

        Yields:
            The sizes of the groups that a part consists of.
        """
        sizes = self._kept_apart(groups)
        if self.max_rows is not None:
            sizes = _cut(sizes, max(1, self.max_rows // num_copies))
        for start in range(0, len(sizes), self.num_processes):
            part = tuple(sizes[start : start + self.num_processes])
            self.memory.largest = max(self.memory.largest, num_copies * max(part))
            yield part

    @contextmanager
    def around_reward(self) -> Iterator[None]:
        """Context in which a reward is called: it waits only while the run goes on, and its requests are counted."""
        with charged_to(self.cost), ended_by(self.is_interrupted if self.shards is None else never):
            yield

    def over_chunks(
        self,
        function: Callable[..., Tensor | Pending[Tensor]],
        groups: Sequence[int],
        *rows: Tensor,
        count: Callable[[Tensor], None] = lambda index: None,
    ) -> Tensor:
        """Rows through a function of (index, rows) of a chunk.

        Args:
            function: maps the indices of a chunk, on the CPU, and its rows to what is made of them, row by row; while
                that is pending, further chunks are evaluated.
            groups: the sizes of the groups of rows.
            *rows: each `[N, ...]`.
            count: told the indices of each chunk that is evaluated, by whichever process.

        Raises:
            Interrupted: the run is to end here.
        """

        def evaluate_chunk(chunk: Chunk, *rows: Tensor) -> Tensor | Pending[Tensor]:
            index = torch.arange(chunk.start, chunk.stop)
            if self.shards is None:
                if self.is_interrupted():
                    raise Interrupted
                count(index)
            self.memory.largest = max(self.memory.largest, len(index))
            # Copies, which begin where memory is aligned, wherever the chunk stands among the others.
            return function(index, *(row[chunk.start : chunk.stop].clone() for row in rows))

        def evaluate(chunks: Sequence[Chunk], *rows: Tensor) -> Tensor:
            results = in_order(evaluate_chunk(chunk, *rows) for chunk in chunks)
            return results[0] if len(results) == 1 else torch.cat(results)

        chunks = self.chunks(groups)
        if self.shards is None:
            return evaluate(chunks, *rows)
        for chunk in chunks:
            count(torch.arange(chunk.start, chunk.stop))
        return self.shards.evaluate(evaluate, chunks, *rows)

    def checkpointed(
        self,
        part: Literal["network", "decoder", "reward"],
        function: Callable[..., Result],
        index: Tensor,
        *rows: Tensor,
    ) -> Result:
        """`function(index, *rows)`, which evaluates a part: again on the backward pass where that is wanted."""
        is_wanted: bool = getattr(self.gradient_checkpointing, part)
        if is_wanted and torch.is_grad_enabled() and any(row.requires_grad for row in rows):
            # A second evaluation ends early by an exception, which must not pass through the code of a reward.
            early_stop = part != "reward"
            evaluated: Result = checkpoint(function, index, *rows, use_reentrant=False, early_stop=early_stop)
            return evaluated
        return function(index, *rows)

    def _kept_apart(self, groups: Sequence[int]) -> Sequence[int]:
        """The groups between which no chunk spans: one where nothing is promised of batches."""
        return [sum(groups)] if self.particle_batch_size is None else groups


def _cut(groups: Sequence[int], size: int) -> list[int]:
    """The sizes of pieces of groups, each at most `size` and within one group."""
    return [min(size, group - start) for group in groups for start in range(0, group, size)]
