"""Which methods of a comparison no other beats in two rewards at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..scoring.statistics import Estimate
from .plan import SizedMethod
from .summary import Summary


@dataclass(frozen=True)
class Point:
    """A method at its size, by two rewards.

    Attributes:
        method: the method.
        cost: network evaluations of an image, a backward pass counted as two.
        reward: that the method followed.
        held_out: that it has not seen.
        is_on_front: whether no other method of the comparison is at least as good in both means and better in one.
    """

    method: SizedMethod
    cost: float
    reward: Estimate
    held_out: Estimate
    is_on_front: bool


def points_of(summaries: Sequence[Summary], held_out: str) -> list[Point]:
    """Each distinct method of all budgets, those on the front first, from the highest followed reward to the lowest.

    Args:
        held_out: name of the held-out reward.
    """
    distinct = {summary.method.label: summary for summary in summaries}.values()
    pairs = [(summary.reward.mean, summary.held_out_rewards[held_out].mean) for summary in distinct]
    points = [
        Point(
            summary.method,
            summary.cost["equivalent_evaluations"],
            summary.reward,
            summary.held_out_rewards[held_out],
            is_on_front,
        )
        for summary, is_on_front in zip(distinct, on_front(pairs), strict=True)
    ]
    return sorted(points, key=lambda point: (not point.is_on_front, -point.reward.mean, point.cost))


def on_front(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether each pair, of which more is better, is dominated by no other; equal ones do not dominate each other.

    Example:
        >>> on_front([(1, 3), (2, 2), (1, 2), (3, 1)])
        [True, True, False, True]
    """
    return [not any(_dominates(other, pair) for other in pairs) for pair in pairs]


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] >= other[0] and one[1] >= other[1]
