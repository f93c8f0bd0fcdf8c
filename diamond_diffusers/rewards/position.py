"""Whether an object stands in a relation to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .detection.base import DetectionReward
from .detection.requirements import Position
from .detection.specifications import example_of, specified
from .registry import register_reward


@register_reward("position")
class PositionReward(DetectionReward):
    """How well an object is left of, right of, above or below another, by an open-vocabulary detector.

    The score is the product of the certainties of both best boxes, see `PresenceReward`, and of how well the direction
    from one to the other fits: 0 for the opposite, 1 for exactly this one, 1/2 where GenEval's rule begins to hold. The
    hard rule is GenEval's, on the best boxes above the threshold.

    Args:
        object: its name, in the singular and without an article; or a mapping from prompts to an object, a relation and
            another object, such as `{"a dog left of a cat": ("dog", "left of", "cat")}`.
        relation: "left of", "right of", "above" or "below"; None with a mapping.
        other: name of the object that it is seen from; None with a mapping.
        name: name under which the scores are reported.
        options: those of `DetectionReward`: `detector`, `graded`, `threshold`, `max_overlap`, `device` and more.

    Raises:
        OSError, TypeError, ValueError: see `DetectionReward`; or an object or the relation is malformed.

    Source: Ghosh et al. 2023, "GenEval", arXiv:2310.11513, for relations.

    Example:
        >>> PositionReward("dog", "left of", "cat")  # doctest: +SKIP
    """

    source = "Minderer et al. 2023, arXiv:2306.09683; Ghosh et al. 2023, arXiv:2310.11513"

    def __init__(
        self,
        object: str | Mapping[str, Any],
        relation: str | None = None,
        other: str | None = None,
        *,
        name: str = "position",
        **options: Any,
    ) -> None:
        required = specified(name, Position, object, relation, other)
        super().__init__(required, name=name, example=example_of(required), **options)
