"""Whether an object in the image has a colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .detection.base import DetectionReward
from .detection.requirements import Presence
from .detection.specifications import example_of, specified
from .registry import register_reward


@register_reward("object_colour")
class ObjectColourReward(DetectionReward):
    """Certainty that the image shows an object of a colour: a detector finds it, and CLIP names the colour of its box.

    The score is that of the best box: its certainty, see `PresenceReward`, times the probability of the colour among
    GenEval's ten: red, orange, yellow, green, blue, purple, pink, brown, black and white. The hard rule asks for a box
    above the threshold of which this colour is the likeliest one.

    Args:
        object: its name, in the singular and without an article, such as "traffic light"; or a mapping from prompts to
            pairs of a name and a colour, for calls with several prompts.
        colour: one of the ten; None with a mapping.
        name: name under which the scores are reported.
        options: those of `DetectionReward`: `detector`, `clip`, `graded`, `threshold`, `device` and more.

    Raises:
        OSError, TypeError, ValueError: see `DetectionReward`; or the object or the colour is malformed.

    Source: Ghosh et al. 2023, "GenEval", arXiv:2310.11513, for colours.

    Example:
        >>> ObjectColourReward("car", "red")  # doctest: +SKIP
    """

    source = "Minderer et al. 2023, arXiv:2306.09683; Ghosh et al. 2023, arXiv:2310.11513"
    size = "2.3 GB"
    hub_files = (*DetectionReward.hub_files, ("openai/clip-vit-large-patch14", "model.safetensors"))

    def __init__(
        self, object: str | Mapping[str, Any], colour: str | None = None, *, name: str = "object_colour", **options: Any
    ) -> None:
        if colour is None and not isinstance(object, Mapping):
            raise TypeError(f"Reward '{name}' got the object {object!r} and no colour; give one, such as 'red'.")
        required = specified(name, Presence, object, colour)
        super().__init__(required, name=name, example=example_of(required), **options)
