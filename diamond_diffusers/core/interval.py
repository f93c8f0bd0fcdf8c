"""One step of sampling as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Interval:
    """A step from one noise level down to a lower one.

    Attributes:
        start: noise-to-signal ratio at which the step starts, at most infinity.
        end: the lower ratio that it reaches, at least 0.
        is_last: whether a run ends there.

    Example:
        >>> Interval(2.0, 0.5).correlation("ddpm")
        0.25
    """

    start: float
    end: float
    is_last: bool = False

    def correlation(self, chosen: float | str) -> float:
        """`rho` in `[0, 1]` between the noises at the two levels.

        Args:
            chosen: that number, or `"ddpm"` for `end / start`, with which a chain of such steps is Markov.
        """
        if chosen != "ddpm":
            return float(chosen)
        # At pure noise too, where the ratio says nothing.
        return 1.0 if self.end == self.start else self.end / self.start


def intervals(levels: Sequence[float]) -> list[Interval]:
    """The steps between falling levels, the last of which is marked."""
    last = len(levels) - 2
    return [Interval(start, end, index == last) for index, (start, end) in enumerate(pairwise(levels))]
