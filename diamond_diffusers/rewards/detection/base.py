"""The base class of rewards that look for objects with a detector."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from ...core.tensors import at_least_float32
from ..base import Reward
from ..hub import check_hub_options
from .colours import COLOURS, ColourClassifier
from .detectors import CHECKPOINT, Detections, Detector, load_detector
from .geometry import certainty, distinct
from .requirements import MAX_OBJECTS, Found, Requirement

Requirements = tuple[Requirement, ...]

_NEGLIGIBLE = 0.01
"""The certainty below which the colour of a box makes no difference."""


class DetectionReward(Reward):
    """How well an image fulfils what it is required to show, from 0 to 1, by the boxes of an open-vocabulary detector.

    Graded scores are smooth, so that a search or a gradient can climb them; the score of several requirements is their
    mean. The hard score is 1 if all of them hold, and 0 otherwise. Each requirement says how it is graded, and
    `geometry.certainty` how a confidence becomes a certainty.

    Args:
        requirements: of all images; or those of each prompt, as a mapping or as a function.
        detector: an OWLv2 or a Grounding DINO of transformers, by name on the Hub or as a local folder; or a
            `Detector`, which rewards can share.
        clip: the CLIP that tells colours, in any form that `CLIPReward` takes; loaded if a colour may be asked for.
        graded: whether scores are graded.
        threshold: the confidence above which a box shows an object, between 0 and 1; by default the detector's own.
        max_overlap: intersection over union from which two boxes of one object show the same one.
        name: name under which the scores are reported.
        example: a prompt on which `probe` can try a reward that understands some prompts alone.
        gradient_checkpointing: whether the backward pass recomputes each layer instead of storing its activations.
        max_batch_size: the largest number of images in one call of the detector; None for all at once.
        device: device of the models; images are moved to it.
        dtype: dtype of the models; by default that of the detector's checkpoint, and float32 for the CLIP.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError: a checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: a checkpoint is of another kind, or an argument is out of range.
    """

    licence = "that of the checkpoint (OWLv2: Apache-2.0)"
    source = "Minderer et al. 2023, arXiv:2306.09683"
    size = "0.6 GB"
    default_reward_scale = 10.0
    hub_files: tuple[tuple[str, str], ...] = ((CHECKPOINT, "model.safetensors"),)

    def __init__(
        self,
        requirements: Requirements | Mapping[str, Requirements] | Callable[[str], Requirements],
        *,
        name: str,
        example: str = "a photo",
        detector: str | PathLike[str] | Detector = CHECKPOINT,
        clip: str | PathLike[str] = "openai/clip-vit-large-patch14",
        graded: bool = True,
        threshold: float | None = None,
        max_overlap: float = 0.5,
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        for argument, value in (("threshold", threshold), ("max_overlap", max_overlap)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"Reward '{name}' got {argument}={value}; give a number between 0 and 1.")
        check_hub_options(name, hub_options)
        self.name = name
        self.max_batch_size = max_batch_size
        self.graded, self.max_overlap = graded, max_overlap
        self.reads_prompts = not isinstance(requirements, tuple)
        self._requirements, self.example_prompt = requirements, example
        options = {"device": device, "dtype": dtype, **hub_options}
        if isinstance(detector, Detector):
            self.detector = detector.to(device, dtype)
        else:
            self.detector = load_detector(name, detector, gradient_checkpointing=gradient_checkpointing, **options)
        self.threshold = threshold or self.detector.threshold
        self.colours = self._load_colours(clip, {**options, "dtype": dtype or torch.float32})
        self.differentiable = graded and self.detector.differentiable

    def requirements_of(self, prompt: str) -> Requirements:
        """What an image of this prompt is required to show.

        Raises:
            ValueError: the reward does not know it.
        """
        if isinstance(self._requirements, tuple):
            return self._requirements
        if not isinstance(self._requirements, Mapping):
            try:
                return self._requirements(prompt)
            except ValueError as error:
                raise ValueError(f"Reward '{self.name}': {error}") from error
        if prompt not in self._requirements:
            known = ", ".join(map(repr, list(self._requirements)[:5]))
            raise ValueError(
                f"Reward '{self.name}' knows nothing of the prompt {prompt!r}; it was made for {known}"
                f"{' and others' if len(self._requirements) > 5 else ''}. Add the prompt to its mapping."
            )
        return self._requirements[prompt]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: what a prompt requires has to be known, in words that the detector reads."""
        for prompt in prompts:
            self.detector.check_phrases(self._texts(_names_in(self.requirements_of(prompt))))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        required = [self.requirements_of(prompt) for prompt in prompts]
        scores: list[Tensor | None] = [None] * len(required)
        for requirements in dict.fromkeys(required):
            rows = [row for row, each in enumerate(required) if each == requirements]
            phrases = _names_in(requirements)
            for row, detections in zip(rows, self.detector.detect(images[rows], self._texts(phrases)), strict=True):
                scores[row] = self._score(_Scene(self, images[row], phrases, detections), requirements)
        return torch.stack([score for score in scores if score is not None])

    def _texts(self, phrases: Sequence[str]) -> list[str]:
        return [self.detector.template.format(phrase) for phrase in phrases]

    def _score(self, scene: _Scene, requirements: Requirements) -> Tensor:
        if not self.graded:
            return torch.tensor(float(all(each.holds(scene) for each in requirements)))
        return torch.stack([each.grade(scene) for each in requirements]).mean()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the models, in place; returns the reward. Rewards that share the detector see it too."""
        self.detector.to(device, dtype)
        if self.colours is not None:
            self.colours.to(device, dtype)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles the models as `torch.compile` does, in place; returns the reward."""
        self.detector.model.compile(**options)
        if self.colours is not None:
            self.colours.clip.compile(**options)
        return self

    def _load_colours(self, clip: str | PathLike[str], options: dict[str, Any]) -> ColourClassifier | None:
        known = self._requirements
        if isinstance(known, tuple):
            known = {"": known}
        may_ask = not isinstance(known, Mapping) or any(
            each.names_colours for requirements in known.values() for each in requirements
        )
        return ColourClassifier(clip, name=self.name, **options) if may_ask else None


def _names_in(requirements: Requirements) -> list[str]:
    """The names of all objects, each once."""
    return list(dict.fromkeys(name for each in requirements for name in each.objects))


class _Scene:
    """One image with what a detector has found in it."""

    def __init__(self, reward: DetectionReward, image: Tensor, phrases: Sequence[str], detections: Detections) -> None:
        self.reward, self.image, self.phrases, self.detections = reward, image, phrases, detections
        self._found: dict[tuple[str, str | None], Found] = {}

    def find(self, name: str, colour: str | None) -> Found:
        """See `Scene`."""
        if (name, colour) not in self._found:
            found = self._find(name)
            self._found[name, colour] = found if colour is None else self._of_colour(found, name, COLOURS.index(colour))
        return self._found[name, colour]

    def _find(self, name: str) -> Found:
        scores, threshold = self.detections.scores[:, self.phrases.index(name)], self.reward.threshold
        kept = distinct(self.detections.boxes, scores, self.reward.max_overlap, MAX_OBJECTS)
        scores, boxes = scores[kept], self.detections.boxes[kept]
        return Found(certainty(scores, threshold), scores > threshold, boxes)

    def _of_colour(self, found: Found, name: str, colour: int) -> Found:
        """The same boxes, whose certainties are multiplied by the probability of a colour.

        Where the boxes are does not follow the gradient of the colour: a crop has whole pixels.
        """
        assert self.reward.colours is not None
        probabilities = found.certainties.new_zeros(len(found.boxes))
        is_colour = torch.zeros_like(found.shows)
        crops = {
            row: crop
            for row, box in enumerate(found.boxes.detach().tolist())
            if found.certainties[row] > _NEGLIGIBLE and (crop := self._crop(box)).numel()
        }
        if crops:
            rows = torch.tensor(list(crops), device=probabilities.device)
            told = self.reward.colours.probabilities(list(crops.values()), name).to(probabilities)
            probabilities = probabilities.index_put((rows,), told[:, colour])
            is_colour[rows] = told.argmax(1) == colour
        return Found(found.certainties * probabilities, found.shows & is_colour, found.boxes)

    def _crop(self, box: Sequence[float]) -> Tensor:
        """The pixels that a box touches, `[3, h, w]`; none where it lies outside of the image."""
        height, width = self.image.shape[-2:]
        left, top = (max(0, math.floor(place)) for place in box[:2])
        right, bottom = min(width, math.ceil(box[2])), min(height, math.ceil(box[3]))
        return at_least_float32(self.image)[:, top : max(top, bottom), left : max(left, right)]
