"""How a run fits into the memory that is free: the size of its chunks, and what is evaluated again on the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .execution import Checkpointing
from .graph_demand import GraphDemand

USED_SHARE = 0.9
"""Of the free memory, so much is planned with: kernels take some for themselves, and it lies in pieces."""
ENOUGH_ROWS = 4
"""Parts are evaluated again until chunks have so many rows: a GPU is hardly faster with more of a published model."""
CHECKPOINTINGS = (
    Checkpointing(),
    Checkpointing(decoder=True),
    Checkpointing(decoder=True, reward=True),
    Checkpointing(network=True, decoder=True, reward=True),
)
"""From the fastest on; a decoder holds most, and costs less than a network to evaluate again."""

PartName = Literal["network", "decoder", "preview", "reward"]


@dataclass(frozen=True)
class RowUse:
    """Bytes that a part takes for one row.

    Attributes:
        graph: what its autograd graph holds.
        working: the most that it works with at once beside its graph.
        checkpointed: what its graph holds where it is evaluated again on the way back, beyond what others hold.
        again: the most of its graph that is then made at once, on the way back.
    """

    graph: int = 0
    working: int = 0
    checkpointed: int = 0
    again: int = 0

    @classmethod
    def as_a_whole(cls, graph: int, working: int) -> RowUse:
        """That of a part which is evaluated again as a whole."""
        return cls(graph, working, 0, graph)


@dataclass(frozen=True)
class MemoryPlan:
    """How a run fits into memory.

    Attributes:
        particle_batch_size: the most rows of one call, all of one image; None for the rows of all images at once.
        gradient_checkpointing: the parts that are evaluated again on the backward pass.
        previews: whether look-aheads are decoded by a smaller decoder.
        num_bytes: what the run takes at its largest by the counts of one row, beyond the weights.
        free_bytes: what it may take.

    Example:
        >>> plan = MemoryPlan(4, Checkpointing(decoder=True), False, 12 * 10**9, 20 * 10**9)
        >>> print(plan)
        chunks of 4 rows, decoder evaluated again on the backward pass: 12.0 GB of 20.0 GB
    """

    particle_batch_size: int | None
    gradient_checkpointing: Checkpointing
    previews: bool
    num_bytes: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether it does, by its counts."""
        return self.num_bytes <= self.free_bytes

    def within(self, other: MemoryPlan) -> MemoryPlan:
        """The plan of the smaller chunks of two, which evaluates again what either does."""
        sizes = [plan.particle_batch_size for plan in (self, other) if plan.particle_batch_size is not None]
        parts = zip(
            asdict(self.gradient_checkpointing).items(), asdict(other.gradient_checkpointing).values(), strict=True
        )
        return MemoryPlan(
            min(sizes, default=None),
            Checkpointing(**{name: mine or theirs for (name, mine), theirs in parts}),
            self.previews,
            max(self.num_bytes, other.num_bytes),
            min(self.free_bytes, other.free_bytes),
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        size = self.particle_batch_size
        chunks = "all rows at once" if size is None else f"chunks of {size} row{'s' if size > 1 else ''}"
        again = [name for name, is_again in asdict(self.gradient_checkpointing).items() if is_again]
        parts = " and ".join([", ".join(again[:-1]), again[-1]] if len(again) > 1 else again)
        evaluated = f"{parts} evaluated again on the backward pass" if again else "nothing evaluated twice"
        previews = ", look-aheads by the preview decoder" if self.previews else ""
        return f"{chunks}, {evaluated}{previews}: {self.num_bytes / 1e9:.1f} GB of {self.free_bytes / 1e9:.1f} GB"


@dataclass(frozen=True)
class RunSize:
    """What is known of a run before it begins.

    Attributes:
        demand: of its method.
        uses: of one row, by part; parts that are not evaluated are missing.
        num_images: of the batch.
        previews: whether look-aheads have a smaller decoder.
    """

    demand: GraphDemand
    uses: Mapping[PartName, RowUse]
    num_images: int = 1
    previews: bool = False

    def num_bytes(self, rows: int, checkpointing: Checkpointing) -> int:
        """What the run takes at its largest, beyond weights, in chunks of so many rows."""
        particles = max(1, rows // self.demand.copies)

        def held(part: PartName, count: int) -> int:
            use = self.uses.get(part, RowUse())
            return particles * count * (use.checkpointed if _is_again(checkpointing, part) else use.graph)

        def again(part: PartName, count: int) -> int:
            use = self.uses.get(part, RowUse())
            return rows * use.again if count and _is_again(checkpointing, part) else 0

        demand = self.demand
        network = held("network", demand.network)
        decoders = held("decoder", demand.decoder) + held("preview", demand.preview)
        # On the way back first the reward's graph is gone, then the decoder's.
        largest = max(
            network + decoders + held("reward", demand.scored) + again("reward", demand.scored),
            network + decoders + max(again("decoder", demand.decoder), again("preview", demand.preview)),
            network + again("network", demand.network),
        )
        return largest + rows * max((use.working for use in self.uses.values()), default=0)

    def sizes(self) -> Iterator[int]:
        """Sizes of chunks from the largest on, each the smallest with which an image takes as many chunks."""
        copies = self.demand.copies
        particles = math.ceil(self.demand.rows / copies)
        chunks = range(1, particles + 1)
        yield from dict.fromkeys(copies * math.ceil(particles / count) for count in chunks)
        yield from range(copies - 1, 0, -1)


def plan_memory(
    run: RunSize,
    free_bytes: int,
    particle_batch_size: int | Literal["auto"] | None = "auto",
    checkpointings: Sequence[Checkpointing] = CHECKPOINTINGS,
) -> MemoryPlan:
    """The fastest plan by which a run fits into memory.

    As little as possible is evaluated again: the first of the choices is taken with which a chunk holds all rows of an
    image, or `ENOUGH_ROWS` of them; where there is none, that with the largest chunks. Where all images fit at once,
    they are evaluated at once.

    Args:
        run: what is to fit.
        free_bytes: what it may take.
        particle_batch_size: the size of chunks where it is given; `"auto"` chooses it.
        checkpointings: the choices, from the fastest on.

    Returns:
        A plan within the free memory; where there is none, that which takes the least.
    """
    rows_of_all = run.num_images * run.demand.rows
    # Sizes as they are given to a call, and how many rows that makes.
    choices: list[tuple[int | None, int]] = [(None, rows_of_all)]
    if particle_batch_size == "auto":
        choices += [(size, size) for size in run.sizes()]
    elif particle_batch_size is not None:
        choices = [(particle_batch_size, min(particle_batch_size, run.demand.rows))]
    enough = min(ENOUGH_ROWS, run.demand.rows) if particle_batch_size == "auto" else 0
    plans: list[tuple[int, MemoryPlan]] = []
    for checkpointing in checkpointings:
        for size, rows in choices:
            plan = MemoryPlan(size, checkpointing, run.previews, run.num_bytes(rows, checkpointing), free_bytes)
            if plan.fits:
                break
        if plan.fits and rows >= enough:
            return plan
        plans.append((rows if plan.fits else 0, plan))
    # Of equal sizes the fastest; where nothing fits, what takes the least.
    largest = max(rows for rows, _ in plans)
    return next(plan for rows, plan in (plans if largest else plans[::-1]) if rows == largest)


def _is_again(checkpointing: Checkpointing, part: PartName) -> bool:
    return bool(getattr(checkpointing, "decoder" if part == "preview" else part))
