"""Whether an object is in the image so many times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .detection.base import DetectionReward
from .detection.requirements import Count
from .detection.specifications import example_of, specified
from .registry import register_reward


@register_reward("count")
class CountReward(DetectionReward):
    """How well the number of an object in the image is the one that is asked for, by an open-vocabulary detector.

    The score is `1 / (1 + E |K - number|)`. `K` is the number of objects if each distinct box shows one by its
    certainty `sigmoid(2 (logit(confidence) - logit(threshold)))`, independently of the others. It is 1 only where so
    many boxes are certain and no others are possible, and falls with each object too many or too few. The hard rule
    counts the boxes above the threshold.

    Args:
        object: its name, in the singular and without an article, such as "traffic light"; or a mapping from prompts to
            pairs of a name and a number, such as `{"three apples": ("apple", 3)}`, for calls with several prompts.
        number: how many, from 0 to 32; None with a mapping.
        name: name under which the scores are reported.
        options: those of `DetectionReward`: `detector`, `graded`, `threshold`, `max_overlap`, `device` and more.

    Raises:
        OSError, TypeError, ValueError: see `DetectionReward`; or the object or the number is malformed.

    Example:
        >>> CountReward("apple", 3)  # doctest: +SKIP
    """

    def __init__(
        self, object: str | Mapping[str, Any], number: int | None = None, *, name: str = "count", **options: Any
    ) -> None:
        required = specified(name, Count, object, number)
        super().__init__(required, name=name, example=example_of(required), **options)
