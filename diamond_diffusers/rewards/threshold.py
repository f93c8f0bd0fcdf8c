"""Thresholds: which scores a constraint allows, and how far others are from that."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
STRENGTH = 10.0
"""Nats for each unit of excess: particles that miss a threshold by a tenth of it count `exp(-1)`.

Weaker ones find fewer of the images that hold a rare constraint, and stronger ones distort the law of those that they
find; `docs/judges/constraints.md` has the figures.
"""


@dataclass(frozen=True)
class Threshold:
    """A bound on scores, on one side of it.

    Args:
        comparison: `<`, `<=`, `>` or `>=`: how an allowed score stands to the bound.
        bound: any finite number.
        strength: nats by which an image loses for each unit of excess, positive.
        unit: of the excess, positive; None for the size of the bound, or 1 where that is 0.

    Raises:
        ValueError: an argument is unknown or out of range.
    """

    comparison: str
    bound: float
    strength: float = STRENGTH
    unit: float | None = None

    def __post_init__(self) -> None:
        if self.comparison not in COMPARISONS:
            raise ValueError(f"comparison is {self.comparison!r}; give one of {', '.join(COMPARISONS)}")
        if not math.isfinite(self.bound):
            raise ValueError(f"the threshold is {self.bound}; give a finite number")
        for name, value in (("strength", self.strength), ("unit", self.unit)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; give a finite, positive number")

    def violation(self, scores: Tensor) -> Tensor:
        """How many nats scores `[B]` lose, `[B]`, with their graph: 0 where they are allowed, positive elsewhere."""
        excess = scores - self.bound if self.comparison in ("<", "<=") else self.bound - scores
        unit = abs(self.bound) or 1.0 if self.unit is None else self.unit
        # A score on the bound itself may not be allowed.
        lost = (self.strength / unit * excess).clamp(min=torch.finfo(scores.dtype).eps)
        return torch.where(COMPARISONS[self.comparison](scores, self.bound), 0.0, lost)

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:.12g}"
