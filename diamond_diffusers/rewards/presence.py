"""Whether an object is in the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .detection.base import DetectionReward
from .detection.requirements import Presence
from .detection.specifications import example_of, specified
from .registry import register_reward


@register_reward("presence")
class PresenceReward(DetectionReward):
    """Certainty that the image shows an object at least once, by an open-vocabulary detector.

    The certainty of a box is `sigmoid(2 (logit(confidence) - logit(threshold)))`, and the score that of the best box.
    It is above 1/2 where the hard rule holds, which asks for a box above the threshold.

    Args:
        object: its name, in the singular and without an article, such as "traffic light"; or a mapping from prompts to
            such names, for calls with several prompts.
        name: name under which the scores are reported.
        options: those of `DetectionReward`: `detector`, `graded`, `threshold`, `max_overlap`, `device` and more.

    Raises:
        OSError, TypeError, ValueError: see `DetectionReward`; or the object is malformed.

    Example:
        >>> PresenceReward("dog", detector="IDEA-Research/grounding-dino-tiny")  # doctest: +SKIP
    """

    def __init__(self, object: str | Mapping[str, Any], *, name: str = "presence", **options: Any) -> None:
        required = specified(name, Presence, object)
        super().__init__(required, name=name, example=example_of(required), **options)
