"""Whether the image shows the objects, numbers, colours and positions that its prompt names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .detection.base import DetectionReward
from .detection.reading import read_requirements
from .detection.requirements import Requirement
from .registry import register_reward


@register_reward("composition")
class CompositionReward(DetectionReward):
    """How well the image shows what its prompt names, by an open-vocabulary detector, and CLIP for colours.

    The score is the mean of the scores of `PresenceReward`, `CountReward`, `ObjectColourReward` and `PositionReward`
    for all that is required; the hard score is 1 if all of it holds. By default the requirements are read from the
    prompt, if it names things with their articles, numbers, colours and one relation alone, such as "three apples and
    a red dog" or "a photo of a cat left of a blue car". Any other prompt is refused. `requirements_of(prompt)` tells
    what was understood.

    Args:
        requirements: a list of `Presence`, `Count` and `Position` of `rewards.detection`, for all images; or a mapping
            from prompts to such lists; or None to read the prompts.
        name: name under which the scores are reported.
        options: those of `DetectionReward`: `detector`, `clip`, `graded`, `threshold`, `device` and more.

    Raises:
        OSError, TypeError, ValueError: see `DetectionReward`; or there is no requirement.

    Example:
        >>> reward = CompositionReward()  # doctest: +SKIP
        >>> reward.requirements_of("three apples and a red dog")  # doctest: +SKIP
        (Count(name='apple', number=3, colour=None), Presence(name='dog', colour='red'))
    """

    source = "Minderer et al. 2023, arXiv:2306.09683; Ghosh et al. 2023, arXiv:2310.11513"
    size = "2.3 GB"
    hub_files = (*DetectionReward.hub_files, ("openai/clip-vit-large-patch14", "model.safetensors"))

    def __init__(
        self,
        requirements: Sequence[Requirement] | Mapping[str, Sequence[Requirement]] | None = None,
        *,
        name: str = "composition",
        **options: Any,
    ) -> None:
        if requirements is None:
            super().__init__(read_requirements, name=name, example="a cat", **options)
            return
        listed = list(requirements.values()) if isinstance(requirements, Mapping) else [requirements]
        for each in listed:
            if isinstance(each, str) or not each or not all(isinstance(one, Requirement) for one in each):
                raise TypeError(
                    f"Reward '{name}' got requirements={each!r}; give a list of Presence, Count and Position, a "
                    "mapping from prompts to such lists, or None to read the prompts."
                )
        if isinstance(requirements, Mapping):
            required = {prompt: tuple(each) for prompt, each in requirements.items()}
            super().__init__(required, name=name, example=next(iter(required), "a photo"), **options)
        else:
            super().__init__(tuple(requirements), name=name, **options)
