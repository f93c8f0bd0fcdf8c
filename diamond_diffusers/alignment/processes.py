"""Particles of one prompt spread over processes: each evaluates its share, and all of them know the results."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from accelerate import Accelerator, PartialState
from torch import Tensor, distributed

DistributedState: TypeAlias = PartialState | Accelerator | distributed.ProcessGroup
"""What names the processes that share a call."""

Value = TypeVar("Value")

Chunk = range
"""The rows of one call."""

ChunkFunction = Callable[..., Tensor]
"""Maps (chunks, rows...) to a result `[n, ...]` for the rows of those chunks; row by row."""


class ParticleShards:
    """Processes that run the same call together, each of which evaluates its share of the chunks of particles.

    Every process holds all particles at their level and draws the same numbers. Of the network, the decoder and the
    reward, forward and backward, it evaluates its own chunks; then results are gathered, so that every process goes on
    with those of one process, bit for bit with a `particle_batch_size` and on alike machines.
    Exchanged are latents for each evaluation of the network, scores of look-aheads, images of final particles, and, on
    the way back, gradients of latents. Activations, graphs and images of look-aheads stay where they are.

    Args:
        group: the processes; None for all.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self.group = group
        self.num_processes = distributed.get_world_size(group)
        self.process_index = distributed.get_rank(group)

    @classmethod
    def of(cls, state: DistributedState | None) -> ParticleShards | None:
        """The shards that a user's `distributed_state` stands for; None for a single process.

        Raises:
            TypeError: it is none of these.
        """
        if isinstance(state, PartialState | Accelerator):
            return cls() if state.num_processes > 1 else None
        if isinstance(state, distributed.ProcessGroup):
            return cls(state) if state.size() > 1 else None
        if state is not None:
            raise TypeError(
                f"distributed_state is {state!r}; give accelerate's PartialState() or Accelerator(), or a process "
                "group of torch.distributed"
            )
        return None

    def check_same(self, **values: Any) -> None:
        """Raises a `ValueError` that names the first of some values in which processes differ.

        Args:
            **values: tensors, sequences of tensors, or what its `repr` tells apart.
        """
        mine = {name: _digest(value) for name, value in values.items()}
        everyones: list[dict[str, str]] = [{}] * self.num_processes
        distributed.all_gather_object(everyones, mine, group=self.group)
        for name in mine:
            if len({digests[name] for digests in everyones}) > 1:
                raise ValueError(
                    f"{name} is not the same in all {self.num_processes} processes of distributed_state, which draw "
                    "one batch together; give each of them the same arguments, and generators of the same seeds"
                )

    def any(self, is_true: bool) -> bool:
        """Whether it is true in any of the processes, all of which must ask together."""
        return any(self.everyones(is_true))

    def everyones(self, value: Value) -> list[Value]:
        """The values of all processes, process by process, all of which must ask together."""
        values: list[Value] = [value] * self.num_processes
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def evaluate(self, function: ChunkFunction, chunks: Sequence[Chunk], *rows: Tensor) -> Tensor:
        """`function(chunks, *rows)`, of which each process evaluates its share; differentiable in the rows.

        All processes must call this, and differentiate it, in the same order.
        """
        size = math.ceil(len(chunks) / self.num_processes)
        shares = [chunks[size * process : size * (process + 1)] for process in range(self.num_processes)]
        counts = [sum(map(len, share)) for share in shares]
        # One that has nothing to do repeats what another does, for its shape.
        mine = shares[self.process_index] or chunks[-1:]
        if torch.is_grad_enabled() and any(row.requires_grad for row in rows):
            return _Shared.apply(self, function, mine, counts, *rows)
        return self.gather(function(mine, *rows), counts)

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, one process after another.

        Args:
            rows: this process's, `[n, ...]`; of one that contributes none, any rows of the same kind.
            counts: how many each process contributes.
        """
        sent = rows.new_zeros(max(counts), *rows.shape[1:])
        count = counts[self.process_index]
        sent[:count] = rows[:count]
        received = [torch.empty_like(sent) for _ in counts]
        distributed.all_gather(received, sent, group=self.group)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])


class _Shared(torch.autograd.Function):
    """Gathers results on the way there and gradients on the way back; the graph stays with the share."""

    @staticmethod
    def forward(
        ctx: Any,
        shards: ParticleShards,
        function: ChunkFunction,
        chunks: Sequence[Chunk],
        counts: Sequence[int],
        *rows: Tensor,
    ) -> Tensor:
        ctx.shards, ctx.counts = shards, counts
        ctx.leaves = [row.detach().requires_grad_(row.requires_grad) for row in rows]
        with torch.enable_grad():
            ctx.result = function(chunks, *ctx.leaves)
        return shards.gather(ctx.result.detach(), counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        index, counts = ctx.shards.process_index, ctx.counts
        start = sum(counts[:index])
        mine = slice(start, start + counts[index])
        tracked = [leaf for leaf in ctx.leaves if leaf.requires_grad]
        gradients = [torch.zeros_like(leaf) for leaf in tracked]
        if counts[index] > 0:
            gradients = list(torch.autograd.grad(ctx.result, tracked, gradient[mine], materialize_grads=True))
        gathered = iter([ctx.shards.gather(part[mine], counts) for part in gradients])
        return None, None, None, None, *(next(gathered) if leaf.requires_grad else None for leaf in ctx.leaves)


def _digest(value: Any) -> str:
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()
