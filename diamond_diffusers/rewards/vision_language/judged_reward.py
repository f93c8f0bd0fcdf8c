"""The base of rewards that ask a judge."""

from __future__ import annotations

from typing import Any, Self

import torch

from ..base import Reward
from .judge import CHECKPOINT, Judge


class JudgedReward(Reward):
    """A reward that asks a judge about its images. Subclasses define `score`.

    Args:
        judge: whom it asks.
        name: name under which the scores are reported.
    """

    licence = "that of the checkpoint (Qwen2.5-VL-7B: Apache-2.0)"
    size = "16.6 GB"
    hub_files = ((CHECKPOINT, "config.json"),)

    def __init__(self, judge: Judge, name: str) -> None:
        self.judge = judge
        self.name = name
        self.differentiable = judge.differentiable

    @property
    def model(self) -> Any:
        """The judge's model of transformers."""
        return self.judge.model  # type: ignore[attr-defined]

    @property
    def processor(self) -> Any:
        """The processor of the judge's model."""
        return self.judge.processor  # type: ignore[attr-defined]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the judge, in place, if it can be; returns the reward."""
        if hasattr(self.judge, "to"):
            self.judge.to(device=device, dtype=dtype)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles the judge's model, in place, if it has one; returns the reward."""
        if hasattr(self.judge, "compile"):
            self.judge.compile(**options)
        return self
