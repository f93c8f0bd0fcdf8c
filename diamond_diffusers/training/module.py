"""The distilled module: what is handed to `accelerate`, and the loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.model import Conditions
from ..maps.diamond_map import DiamondMap
from .losses import LOSSES, Batch, diagonal, draw_diagonal_times, draw_inner_times

Result = TypeVar("Result")

PURE_NOISE_SHARE = 0.1
"""Of the rows, observed at pure noise, where every run begins."""
SMALLEST_OUTER_TIME = 0.02
SMALLEST_WEIGHTED_LEVEL = 0.25
"""Below it a row's weight hardly grows."""


class DistilledModule(nn.Module):
    """A map with its network, so that every evaluation goes through one module and can be distributed.

    What is trained is in float32, whatever the precision of the base: in half precision, updates would be rounded away.

    Args:
        diamond_map: with its family.
    """

    def __init__(self, diamond_map: DiamondMap) -> None:
        super().__init__()
        for parameter in diamond_map.trained_parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.diamond_map = diamond_map
        self.network = diamond_map.family.network_module

    def forward(self, function: Callable[[DiamondMap], Result]) -> Result:
        """`function(diamond_map)`. Tensors are not among the arguments, where sharding would cast them."""
        return function(self.diamond_map)


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a batch: some rows learn the velocity, the others the steps.

    Args:
        name: of the steps' loss, in `LOSSES`.
        diagonal_fraction: share of the rows that learn the velocity; fractions of a row add up over batches.
        adaptive_weight_power: `p` of the rows' weights `1 / sg(loss + 0.01)^p` (arXiv 2505.13447).
    """

    name: str = "lagrangian"
    diagonal_fraction: float = 0.75
    adaptive_weight_power: float = 0.0

    def __call__(
        self, diamond_map: DiamondMap, data: Tensor, conditions: Conditions, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of clean latents `[N, ...]`, and its parts to log.

        Args:
            batch_number: decides how many rows learn what, since processes have to evaluate the network alike.
        """
        count = len(data)
        num_diagonal = self._rows_before(batch_number + 1, count) - self._rows_before(batch_number, count)
        levels, index = draw_levels(count), torch.arange(count)
        parts = {}
        if num_diagonal > 0:
            s = draw_diagonal_times(levels[:num_diagonal])
            rows = index[:num_diagonal]
            batch = Batch.draw(data[rows], levels[rows], s, s, conditions.rows(rows))
            parts["diagonal"] = diagonal(diamond_map, batch)
        if num_diagonal < count:
            rows = index[num_diagonal:]
            s, r = draw_inner_times(levels[rows])
            batch = Batch.draw(data[rows], levels[rows], s, r, conditions.rows(rows))
            # No other attention has a forward-mode rule.
            with sdpa_kernel(SDPBackend.MATH) if self.name == "lagrangian" else nullcontext():
                parts[self.name] = LOSSES[self.name](diamond_map, batch)
        squares = torch.cat(list(parts.values())) * per_posterior_variance(levels).to(data)
        weights = (squares.detach() + 0.01) ** -self.adaptive_weight_power
        return (weights * squares).mean(), {name: part.detach().mean() for name, part in parts.items()}

    def _rows_before(self, batch_number: int, count: int) -> int:
        """Rows of earlier batches that learn the velocity."""
        return math.floor(self.diagonal_fraction * count * batch_number + 1e-6)


def draw_levels(count: int) -> Tensor:
    """Outer noise-to-signal ratios `[count]`, float64: uniform in rectified-flow time, and some at pure noise."""
    t = (SMALLEST_OUTER_TIME + (1 - SMALLEST_OUTER_TIME) * torch.rand(count, dtype=torch.float64)).clamp(max=1)
    t = torch.where(torch.rand(count) < PURE_NOISE_SHARE, 1.0, t)
    return t / (1 - t)


def per_posterior_variance(noise_to_signal: Tensor) -> Tensor:
    """`1 + 1 / kappa^2`, the inverse variance of a clean sample given an observation, were the data standard normal.

    In units of that variance, the narrow posteriors of low levels count like the others (as in arXiv 2206.00364). The
    lowest levels are held back, whose rows would decide every update.
    """
    return 1 + 1 / (noise_to_signal**2 + SMALLEST_WEIGHTED_LEVEL**2)
