"""Figures of updates, which stay on the device until they are read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from .errors import TrainingError

GRADIENT_NORM = "norm of the gradients"
"""Is checked, and not among the figures that are read."""


@dataclass(frozen=True)
class Blame:
    """Says of what is no number whose it is, and what to do.

    Args:
        loss: name of the loss.
        dtype: dtype of the base.
    """

    loss: str
    dtype: torch.dtype

    def not_finite(self, what: str, value: float, step: int) -> TrainingError:
        """The error for a value that is infinite or not a number at a step."""
        return TrainingError(
            f"the {what} is {value} at step {step} ({self._whose}); lower --learning_rate or --max_grad_norm"
            f"{self._or_another_precision}, and resume from the last checkpoint"
        )

    def always_skipped(self, count: int, step: int, scale: float) -> TrainingError:
        """The error for gradients that were infinite at each of so many scales, the last of them at a step."""
        return TrainingError(
            f"{count} updates in a row were skipped, the last at step {step}: gradients are infinite or not a number "
            f"even if the loss is multiplied by no more than {scale:g} ({self._whose}); lower --learning_rate"
            f"{self._or_another_precision}, and resume from the last checkpoint"
        )

    @property
    def _whose(self) -> str:
        return f"--loss {self.loss}, base in {str(self.dtype).removeprefix('torch.')}"

    @property
    def _or_another_precision(self) -> str:
        wider = {torch.float16: ", take --mixed_precision bf16 or no", torch.bfloat16: ", take --mixed_precision no"}
        return wider.get(self.dtype, "")


class Figures:
    """Scalars of the updates since they were last read.

    To read them waits for the device. In between, the next update is prepared while it computes.

    Args:
        blame: makes the error for a loss or a gradient that is not finite.
        mean: takes the mean of a tensor over all processes, which have to read equally often.

    Example:
        >>> figures = Figures(Blame("lagrangian", torch.float32), lambda values: values)
        >>> figures.add(0, {"loss": torch.tensor(3.0)})
        >>> figures.add(1, {"loss": torch.tensor(1.0)})
        >>> figures.read()
        {'loss': 2.0}
    """

    def __init__(self, blame: Blame, mean: Callable[[Tensor], Tensor]) -> None:
        self.blame, self.mean = blame, mean
        self._kept: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, figures: Mapping[str, Tensor]) -> None:
        """Keeps scalars of an update, which are in no graph."""
        self._kept += [(step, name, value) for name, value in figures.items()]

    def read(self) -> dict[str, float]:
        """The means of all figures but the norm of the gradients, over the updates that had them.

        Raises:
            TrainingError: a loss or a norm of gradients is not finite; the first one is named.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return {}
        values = self.mean(torch.stack([value for *_, value in kept])).tolist()
        read: dict[str, list[float]] = {}
        for (step, name, _), value in zip(kept, values, strict=True):
            if name in ("loss", GRADIENT_NORM) and not math.isfinite(value):
                raise self.blame.not_finite(name, value, step)
            read.setdefault(name, []).append(value)
        read.pop(GRADIENT_NORM, None)
        return {name: fmean(values) for name, values in read.items()}


@dataclass
class SkippedUpdates:
    """Counts the updates that a scaler of gradients has skipped, since some gradient was not finite.

    A scaler halves its scale then, as it does a few times at the beginning. Where it never succeeds, nothing is learnt.

    Attributes:
        total: number of all in the run.
        in_a_row: number of the last ones.
    """

    total: int = 0
    in_a_row: int = 0

    MAX_IN_A_ROW = 10

    def count(self, is_skipped: bool) -> None:
        """Counts an update."""
        self.total += is_skipped
        self.in_a_row = self.in_a_row + 1 if is_skipped else 0

    @property
    def are_too_many(self) -> bool:
        """Whether no update succeeds."""
        return self.in_a_row >= self.MAX_IN_A_ROW
