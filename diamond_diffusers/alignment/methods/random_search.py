"""Random search over noises."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..noise_search import NoiseSearch
from . import METHODS


@METHODS.register("random_search")
@dataclass(frozen=True)
class RandomSearch(NoiseSearch):
    """Random search: every candidate is a fresh noise. It is best-of-N in rounds, which memory holds one at a time.

    Options and what is kept: see `NoiseSearch`.

    Example:
        >>> pipe("a red star", alignment=RandomSearch(num_candidates=2), num_inference_steps=2)
    """

    def propose(self, pivot: Tensor, fresh: Tensor) -> Tensor:
        return fresh
