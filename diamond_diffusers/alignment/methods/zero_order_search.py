"""Search for the best noise around a pivot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..noise_search import NoiseSearch
from . import METHODS


@METHODS.register("zero_order_search")
@dataclass(frozen=True)
class ZeroOrderSearch(NoiseSearch):
    """Zero-order search: candidates are neighbours `sqrt(1 - step_size^2) pivot + step_size * fresh` of the pivot.

    The paper moves by a set distance; this step keeps the law of the noise besides, whose norm the model expects. A
    step of 1 is random search. Further options and what is kept: see `NoiseSearch`.

    Args:
        step_size: share of fresh noise, in (0, 1].

    Example:
        >>> pipe("a red star", alignment=ZeroOrderSearch(), max_network_evaluations=12, num_inference_steps=2)
    """

    step_size: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is {self.step_size}; give a number above 0 and at most 1")

    def propose(self, pivot: Tensor, fresh: Tensor) -> Tensor:
        return math.sqrt(1 - self.step_size**2) * pivot + self.step_size * fresh
