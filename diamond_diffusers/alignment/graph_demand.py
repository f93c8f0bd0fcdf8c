"""How many rows a method evaluates, and whose graphs it holds, counted by running its own loop on an empty model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import finalize

import torch
from torch import Tensor

from ..core.levels import Level
from ..core.model import Conditions
from ..transitions.sampled_model import SampledModel
from .base import Method
from .budget import EmptyModel, empty_law
from .execution import Execution
from .law import Law
from .random_source import RandomSource


@dataclass(frozen=True)
class GraphDemand:
    """The rows of one image that a method evaluates, and those whose graphs it holds at once for one particle.

    A particle is the least that a method differentiates at a time. A row that is evaluated several times before it is
    differentiated, as along a path of several steps, counts each time.

    Attributes:
        rows: the most rows of an image that could be evaluated at once: particles times their look-aheads.
        copies: rows of a particle that are evaluated together: its look-aheads.
        network: rows whose graphs of the network are held for a particle.
        decoder: the same of the decoder.
        preview: the same of the decoder of look-aheads, which may be a smaller one.
    """

    rows: int = 1
    copies: int = 1
    network: int = 0
    decoder: int = 0
    preview: int = 0

    @property
    def scored(self) -> int:
        """Rows whose graphs of the reward are held for a particle."""
        return self.decoder + self.preview


def graph_demand(method: Method, law: Law, levels: Sequence[float]) -> GraphDemand:
    """The demand of a method up to its first stage that differentiates, or of its first two where none does.

    Args:
        method: resolved for the model.
        law: what it will run on; nothing of it is evaluated.
        levels: of the run.
    """
    held = _HeldRows()
    execution = _RecordingExecution(particle_batch_size=1)
    empty = replace(empty_law(law, lambda model: _MeteredModel(model, held)), execution=execution)
    x = torch.zeros(method.num_particles, 1)
    with torch.no_grad():
        for progress in method.iterate(empty, x, levels, RandomSource(torch.Generator(), 1)):
            if held.most or (progress.index > 0 and not method.needs_reward_gradient):
                break
    return GraphDemand(max(execution.rows), max(execution.copies), **held.most)


class _RecordingExecution(Execution):
    """Evaluates row by row, and records how many there were."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rows", {1})
        object.__setattr__(self, "copies", {1})

    rows: set[int]
    copies: set[int]

    def chunks(self, groups: Sequence[int]) -> list[range]:
        self.rows.add(max(groups))
        return super().chunks(groups)

    def parts(self, groups: Sequence[int], num_copies: int = 1) -> Iterator[tuple[int, ...]]:
        self.rows.add(num_copies * max(groups))
        self.copies.add(num_copies)
        return super().parts(groups, num_copies)


class _HeldRows:
    """Rows whose graphs live.

    Attributes:
        now: of each part.
        most: the most at once of each part.
    """

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: dict[str, int] = {}

    def through(self, part: str, rows: Tensor) -> Tensor:
        """The rows, whose graph, if they have one, is counted for as long as it lives."""
        passed: Tensor = _Counted.apply(rows, part, self)
        return passed

    def begin(self, part: str, count: int) -> None:
        self.now[part] += count
        self.most[part] = max(self.most.get(part, 0), self.now[part])

    def end(self, part: str, count: int) -> None:
        self.now[part] -= count


class _Counted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, part: str, held: _HeldRows) -> Tensor:
        if ctx.needs_input_grad[0]:
            held.begin(part, len(rows))
            ctx.end = finalize(ctx, held.end, part, len(rows))
        return rows.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # Torch lets go what a graph holds as soon as it is differentiated, though the graph may live on.
        ctx.end()
        return gradients[0], None, None


class _MeteredModel(EmptyModel):
    """An empty model that counts the rows whose graphs live."""

    def __init__(self, model: SampledModel, held: _HeldRows) -> None:
        super().__init__(model)
        self.held = held

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return self.held.through("network", super().predict(x, noise_to_signal, conditions))

    def diamond_map(
        self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        return self.held.through("network", super().diamond_map(xbar, s, r, x, noise_to_signal, conditions))

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return self.held.through("preview" if preview else "decoder", super().decode(z, conditions, preview))
