"""Tempering of sequential Monte Carlo: how much of the reward counts at each level (DAS, arXiv 2501.05803)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.registry import Registry
from ...core.typed import Typed
from .resampling import effective_sample_size

NUM_BISECTIONS = 50
"""To the resolution of float64."""


class Tempering(Typed, ABC):
    """The inverse temperature of each valuation, which multiplies the logarithm of the potentials' product.

    It is 0 at the start and 1 at the end, whatever a tempering says of the valuations between.
    """

    @abstractmethod
    def inverse_temperature(self, step: int, previous: Tensor, log_offsets: Tensor, log_potentials: Tensor) -> Tensor:
        """The inverse temperatures `[B]` of the images, in [0, 1].

        Args:
            step: moves that the particles have made, at least 1.
            previous: inverse temperatures of the valuation before, `[B]`.
            log_offsets: log-weights `[B, P]` at inverse temperature 0.
            log_potentials: logarithm of the potentials' product, `[B, P]`, below infinity.
        """

    def proposal_inverse_temperature(self, step: int, present: Tensor) -> Tensor:
        """Those `[B]` by which guidance tilts the move after `step` others: of the level it leads to, where known.

        Args:
            step: moves that the particles have made.
            present: inverse temperatures of the last valuation, `[B]`.
        """
        return present


TEMPERINGS: Registry[type[Tempering]] = Registry("tempering", "temperings", base=f"{__name__}:Tempering")


@TEMPERINGS.register("adaptive")
@dataclass(frozen=True)
class AdaptiveTempering(Tempering):
    """Raises the inverse temperature as far as the effective sample size allows.

    It never falls. It does not depend on the particles of other images, but on those of its own, so that the evidence
    is consistent in their number, no longer unbiased.

    Args:
        effective_sample_size: share of P to which the effective sample size may fall, in (0, 1). Choose it no higher
            than the resampling threshold: then particles are resampled wherever it is reached, and gain room to rise.

    Example:
        >>> SMC(num_particles=8, num_valuations=None, tempering=AdaptiveTempering(effective_sample_size=0.5))
    """

    effective_sample_size: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.effective_sample_size < 1:
            raise ValueError(
                f"effective_sample_size is {self.effective_sample_size}; give a share of the particles between 0 and 1"
            )

    def inverse_temperature(self, step: int, previous: Tensor, log_offsets: Tensor, log_potentials: Tensor) -> Tensor:
        def is_rich(candidate: Tensor) -> Tensor:
            sizes = effective_sample_size(log_offsets + tempered(log_potentials, candidate))
            return sizes >= self.effective_sample_size * log_offsets.shape[1]

        low, high = previous, torch.ones_like(previous)
        reached = is_rich(high)
        for _ in range(NUM_BISECTIONS):
            middle = (low + high) / 2
            rich = is_rich(middle)
            low, high = torch.where(rich, middle, low), torch.where(rich, high, middle)
        # The upper end lies just below the target, which triggers resampling where both have the same threshold.
        return torch.where(reached, 1.0, high)


@TEMPERINGS.register("scheduled")
@dataclass(frozen=True)
class ScheduledTempering(Tempering):
    """`min(1, (1 + gamma)^k - 1)` after `k` moves, the schedule of DAS.

    Args:
        gamma: rate, positive. 1 is reached after `log 2 / log(1 + gamma)` moves: 87 for the default, which DAS uses
            with 100 steps; take `2 ** (1 / K) - 1` to reach it after K.

    Example:
        >>> SMC(num_particles=8, num_valuations=None, tempering=ScheduledTempering(gamma=0.008))
    """

    gamma: float = 0.008

    def __post_init__(self) -> None:
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma is {self.gamma}; give a positive, finite number")

    def inverse_temperature(self, step: int, previous: Tensor, log_offsets: Tensor, log_potentials: Tensor) -> Tensor:
        return torch.full_like(previous, min(1.0, (1 + self.gamma) ** step - 1))

    def proposal_inverse_temperature(self, step: int, present: Tensor) -> Tensor:
        return torch.full_like(present, min(1.0, (1 + self.gamma) ** (step + 1) - 1))


def tempered(log_potentials: Tensor, inverse_temperature: Tensor) -> Tensor:
    """`inverse_temperature * log_potentials`, `[B, P]`, which is 0 at inverse temperature 0 even for `-inf`."""
    inverse_temperature = inverse_temperature[:, None]
    return torch.where(inverse_temperature > 0, inverse_temperature * log_potentials, 0.0)
