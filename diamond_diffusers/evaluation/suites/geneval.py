"""GenEval: objects, numbers, colours and positions, judged by a detector."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, Literal, Protocol

import numpy
import torch
from PIL import Image as images_of_pil
from PIL.Image import Image

from ...rewards.detection.colours import COLOURS, ColourClassifier
from ...rewards.detection.segmenters import CHECKPOINT, Instances, InstanceSegmenter
from ...rewards.preprocessing import images_from_pil
from ..benchmark.prompts import Prompt
from . import register_suite
from .base import SuiteJudge, Verdict
from .geneval_rules import OBJECTS, DetectedObject, Thresholds, check_metadata, faults, most_confident

BACKGROUND = "#999"
"""The grey that hides what does not belong to an object."""


class Segmenter(Protocol):
    """What finds instances of COCO's 80 classes, in COCO's order."""

    def segment(self, image: Image) -> Instances:
        """All instances in an image."""


@dataclass(frozen=True)
class GenEvalScores:
    """The scores of a set of images.

    Attributes:
        tasks: the share of right images of each task, in the order of their first prompts.
        overall: the mean of the tasks, GenEval's score.
        images: the share of right images.
        prompts: the share of prompts of which at least one image is right.
    """

    tasks: Mapping[str, float]
    overall: float
    images: float
    prompts: float


@register_suite("geneval")
class GenEvalJudge(SuiteJudge):
    """Judges by GenEval's rules: a detector finds the objects, CLIP names the colours of those that it has masked.

    The rules and thresholds are the published ones. The detector is the Mask2Former (Swin-S, COCO instances) of its
    authors in transformers, where GenEval takes OpenMMLab's own training of it, so that single verdicts can differ.

    Args:
        detector: a Mask2Former with COCO's 80 classes, by name on the Hub or as a local folder; or an object whose
            method `segment` does the same.
        clip: a CLIP in any form that `CLIPReward` takes; GenEval's is OpenAI's ViT-L/14.
        thresholds: GenEval's by default.
        device: device of both.
        dtype: dtype of both.
        hub_options: forwarded to `from_pretrained` of both, see `CLIPReward`.

    Raises:
        OSError: a checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: a checkpoint is of another kind, or its classes are not COCO's.

    Source: Ghosh et al. 2023, "GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment".
    """

    name = "geneval"
    source = "Ghosh et al. 2023, arXiv:2310.11513"
    licence = "MIT"
    prompts: ClassVar[str] = "geneval"
    needs: ClassVar[tuple[str, ...]] = ("tag",)
    overall: ClassVar[Literal["prompts", "categories"]] = "categories"

    def __init__(
        self,
        detector: str | PathLike[str] | Segmenter = CHECKPOINT,
        clip: str | PathLike[str] = "openai/clip-vit-large-patch14",
        *,
        thresholds: Thresholds | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self.detector: Segmenter
        if isinstance(detector, str | PathLike):
            self.detector = _segmenter_of_coco(detector, device, dtype, hub_options)
        else:
            self.detector = detector
        self.colours = ColourClassifier(clip, name=self.name, device=device, dtype=dtype, **hub_options)

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        """Checks prompts before any model is loaded.

        Raises:
            ValueError: a prompt lacks GenEval's metadata.
        """
        for prompt in prompts:
            check_metadata(prompt.metadata, prompt.text)

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict for each image: its score is 1 or 0, its details are the numbers of detected objects by class.

        Raises:
            ValueError: a prompt lacks GenEval's metadata, or the numbers of images and prompts differ.
        """
        if len(images) != len(prompts):
            raise ValueError(f"there are {len(images)} images and {len(prompts)} prompts; give one prompt per image")
        self.check(prompts)
        return [self._judge(image.convert("RGB"), prompt) for image, prompt in zip(images, prompts, strict=True)]

    def _judge(self, image: Image, prompt: Prompt) -> Verdict:
        found = self._found(image, is_counting=prompt.metadata["tag"] == "counting")

        def name_colours(objects: Sequence[DetectedObject], name: str) -> list[str]:
            return self._name_colours(image, objects, name)

        reasons = faults(found, prompt.metadata, name_colours, self.thresholds.slack)
        details = {name: float(len(objects)) for name, objects in found.items()}
        return Verdict(0.0 if reasons else 1.0, "\n".join(reasons), details)

    def _found(self, image: Image, is_counting: bool) -> dict[str, list[DetectedObject]]:
        """The objects of each class of which there are any."""
        instances, thresholds = self.detector.segment(image), self.thresholds
        confidence = thresholds.counting_confidence if is_counting else thresholds.confidence
        found = {}
        for label, name in enumerate(OBJECTS):
            rows = (instances.labels == label).nonzero()[:, 0]
            of_class = instances.scores[rows], instances.boxes[rows], instances.masks[rows]
            if objects := most_confident(*of_class, confidence, thresholds):
                found[name] = objects
        return found

    @torch.no_grad()
    def _name_colours(self, image: Image, objects: Sequence[DetectedObject], name: str) -> list[str]:
        crops = [images_from_pil([cut_out(image, each)])[0] for each in objects]
        return [COLOURS[index] for index in self.colours.probabilities(crops, name).argmax(1).tolist()]


def cut_out(image: Image, detected: DetectedObject) -> Image:
    """The box of an object, with grey in place of what its mask leaves out."""
    if detected.mask is not None:
        mask = images_of_pil.fromarray(detected.mask.cpu().numpy().astype(numpy.uint8) * 255)
        image = images_of_pil.composite(image, images_of_pil.new("RGB", image.size, BACKGROUND), mask)
    left, top, right, bottom = detected.box.tolist()
    return image.crop((round(left), round(top), round(right), round(bottom)))


def summarise(verdicts: Sequence[Verdict], prompts: Sequence[Prompt]) -> GenEvalScores:
    """The scores of GenEval's `summary_scores.py`, from the verdict on each image and the prompt in its place.

    Raises:
        ValueError: there are none, or their numbers differ.
    """
    if not verdicts or len(verdicts) != len(prompts):
        raise ValueError(f"there are {len(verdicts)} verdicts and {len(prompts)} prompts; give one prompt per verdict")
    tasks: dict[str, list[float]] = {}
    of_prompts: dict[str, list[float]] = {}
    for verdict, prompt in zip(verdicts, prompts, strict=True):
        tasks.setdefault(prompt.metadata["tag"], []).append(verdict.score)
        of_prompts.setdefault(json.dumps(prompt.metadata), []).append(verdict.score)
    means = {tag: _mean(scores) for tag, scores in tasks.items()}
    return GenEvalScores(
        tasks=means,
        overall=_mean(list(means.values())),
        images=_mean([verdict.score for verdict in verdicts]),
        prompts=_mean([max(scores) for scores in of_prompts.values()]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _segmenter_of_coco(
    checkpoint: str | PathLike[str],
    device: torch.device | str | None,
    dtype: torch.dtype,
    hub_options: dict[str, Any],
) -> InstanceSegmenter:
    segmenter = InstanceSegmenter(checkpoint, name="geneval", device=device, dtype=dtype, **hub_options)
    classes = segmenter.classes
    if len(classes) != len(OBJECTS) or classes[0] != "person":
        raise ValueError(
            f"detector='{checkpoint}' has {len(classes)} classes, the first of them {classes[0]!r}; give a Mask2Former "
            "with COCO's 80 classes in their order, such as facebook/mask2former-swin-small-coco-instance"
        )
    return segmenter
