"""Losses of pairs of inner times: some rows learn the velocity of the inner flow, the others its steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core.glass import inner_angle, inner_time
from ...core.model import Conditions
from ..levels import draw_levels, per_posterior_variance
from . import LOSSES
from .base import DistillationLoss
from .residuals import SMALLEST_TIME, Batch, diagonal

if TYPE_CHECKING:
    from ...maps.diamond_map import DiamondMap


@dataclass(frozen=True)
class StepLoss(DistillationLoss):
    """A loss by which some rows of a batch learn the velocity, and the others learn steps from `s` to `r`.

    A subclass defines the residual of the steps in `squared_residuals`, which is called for the rows that learn steps.

    Args:
        diagonal_fraction: share of the rows that learn the velocity; fractions of a row add up over batches.
        adaptive_weight_power: exponent `p` of the rows' weights `1 / sg(loss + 0.01)^p` (arXiv 2505.13447).
    """

    diagonal_fraction: float = 0.75
    adaptive_weight_power: float = 0.0

    @abstractmethod
    def squared_residuals(self, diamond_map: DiamondMap, batch: Batch) -> Tensor:
        """Squared residuals `[N]` of the steps of a batch, averaged over each row's elements."""

    def __call__(
        self, diamond_map: DiamondMap, data: Tensor, conditions: Conditions, batch_number: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of clean latents `[N, ...]`, and its parts to log; see `DistillationLoss`."""
        count = len(data)
        num_diagonal = self._rows_before(batch_number + 1, count) - self._rows_before(batch_number, count)
        # Levels are on the CPU, and rows on the device, which is not to wait for an index.
        levels, index = draw_levels(count, self.pure_noise_share), torch.arange(count, device=data.device)
        parts = {}
        if num_diagonal > 0:
            own = slice(num_diagonal)
            s = draw_diagonal_times(levels[own])
            batch = Batch.draw(data[own], levels[own], s, s, conditions.rows(index[own]))
            parts["diagonal"] = diagonal(diamond_map, batch)
        if num_diagonal < count:
            own = slice(num_diagonal, count)
            s, r = draw_inner_times(levels[own])
            batch = Batch.draw(data[own], levels[own], s, r, conditions.rows(index[own]))
            # No other attention has a forward-mode rule.
            with sdpa_kernel(SDPBackend.MATH) if self.needs_forward_mode else nullcontext():
                parts[self._name] = self.squared_residuals(diamond_map, batch)
        row_weights = per_posterior_variance(levels).to(data.device, data.dtype, non_blocking=True)
        squares = torch.cat(list(parts.values())) * row_weights
        weights = (squares.detach() + 0.01) ** -self.adaptive_weight_power
        return (weights * squares).mean(), {name: part.detach().mean() for name, part in parts.items()}

    def _rows_before(self, batch_number: int, count: int) -> int:
        """The number of rows of earlier batches that learn the velocity."""
        return math.floor(self.diagonal_fraction * count * batch_number + 1e-6)

    @property
    def _name(self) -> str:
        return LOSSES.name_of(type(self)) or type(self).__name__


def draw_inner_times(noise_to_signal: Tensor) -> tuple[Tensor, Tensor]:
    """Inner times `(s, r)` of steps at outer levels `[N]`: `[N]` float64, `0 <= r <= s <= 1`.

    They are uniform in `inner_angle`. On about half of the rows `s` is 1, from which the map is used.
    """
    count = len(noise_to_signal)
    angle = math.pi / 2 * torch.rand(count, dtype=torch.float64)
    s = inner_time(angle, noise_to_signal).clamp(min=SMALLEST_TIME)
    s = torch.where(torch.rand(count) < 0.5, 1.0, s)
    r_angle = inner_angle(s, noise_to_signal) * torch.rand(count, dtype=torch.float64)
    return s, torch.minimum(inner_time(r_angle, noise_to_signal), s)


def draw_diagonal_times(noise_to_signal: Tensor) -> Tensor:
    """Inner times `s` of the rows that learn the velocity, drawn like those of steps; a quarter of them are 1."""
    count = len(noise_to_signal)
    angle = math.pi / 2 * torch.rand(count, dtype=torch.float64)
    s = inner_time(angle, noise_to_signal).clamp(min=SMALLEST_TIME)
    return torch.where(torch.rand(count) < 0.25, 1.0, s)
