"""Runs of alignment methods on the mixture, as the pipeline makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diamond_diffusers import Method
from diamond_diffusers.alignment.law import Law
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.alignment.result import AlignmentResult

from ..core.mixture import seeded

DIMENSION = 3
ENDED = "ended"
"""What `on_step` returns to end a run."""
COARSE_LEVELS = (math.inf, 3.0, 1.2, 0.5, 0.2, 0.0)
"""Enough where transitions are exact."""


def falling_levels(count: int, highest: float = math.inf) -> list[float]:
    """`count` steps uniform in the time of rectified flow."""
    start = 1.0 if math.isinf(highest) else highest / (1 + highest)
    return [
        math.inf if t == 1 else t / (1 - t) for t in torch.linspace(start, 0, count + 1, dtype=torch.float64).tolist()
    ]


def run(
    alignment: Method,
    law: Law,
    levels: Sequence[float] = COARSE_LEVELS,
    seed: int | Sequence[int] = 0,
    x: Tensor | None = None,
    on_step: Callable[[int, Tensor], Tensor | str | None] | None = None,
    shape: Sequence[int] = (DIMENSION,),
) -> AlignmentResult:
    """Runs a method from pure noise, or from `x`; with a generator for each image where there are several seeds."""
    generators = seeded(seed) if isinstance(seed, int) else [seeded(number) for number in seed]
    random = RandomSource(generators, law.num_images)
    if x is None:
        x = random.normal(alignment.num_particles, shape)
    for progress in alignment.iterate(law, x, levels, random):
        replaced = on_step(progress.index, progress.drawn) if on_step else None
        if replaced is ENDED:
            # As it is.
            progress.is_final = True
            break
        if replaced is not None:
            progress.replace_particles(replaced)
    return progress.result()
