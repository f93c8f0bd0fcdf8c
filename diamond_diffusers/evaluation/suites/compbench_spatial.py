"""T2I-CompBench's positions and numbers, judged by an open-vocabulary detector in place of UniDet."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, ClassVar

import torch
from PIL.Image import Image

from ...rewards.detection.detectors import CHECKPOINT, Detector, load_detector
from ...rewards.detection.geometry import distinct
from ...rewards.preprocessing import images_from_pil
from ..benchmark.prompts import Prompt
from . import register_suite
from .base import SuiteJudge, Verdict
from .compbench_spatial_rules import (
    Seen,
    distinct_boxes,
    numeracy_score,
    read_numbers,
    read_spatial,
    spatial_score,
)

MAX_BOXES = 100
MAX_OVERLAP = 0.5


@register_suite("compbench_spatial")
class CompBenchSpatialJudge(SuiteJudge):
    """Judges T2I-CompBench's prompts of positions (`spatial_val`) and of numbers (`numeracy_val`) by its rules.

    The published tool finds things with UniDet, among the classes that UniDet knows. Here a detector is asked for the
    prompt's own words. The rules on the boxes are the published ones, but confidences and misses are another
    detector's: compare such scores with each other, and not with published ones.

    Args:
        detector: an OWLv2 or a Grounding DINO of transformers, by name on the Hub or as a local folder; or a
            `Detector`.
        threshold: the confidence above which a box counts; by default the detector's own.
        device: device of the detector.
        dtype: dtype of the detector.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError, TypeError, ValueError: as `load_detector`.

    Source: Huang et al. 2023, "T2I-CompBench: A Comprehensive Benchmark for Open-world Compositional Text-to-image
    Generation".
    """

    name = "compbench_spatial"
    source = "Huang et al. 2023, arXiv:2307.06350"
    licence = "MIT"
    prompts: ClassVar[str] = "t2i_compbench_spatial"

    def __init__(
        self,
        detector: str | PathLike[str] | Detector = CHECKPOINT,
        *,
        threshold: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        if isinstance(detector, Detector):
            self.detector = detector.to(device, dtype)
        else:
            self.detector = load_detector(self.name, detector, device=device, dtype=dtype, **hub_options)
        self.threshold = threshold or self.detector.threshold

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        """Checks prompts before any model is loaded.

        Raises:
            ValueError: a prompt names neither a position nor numbers.
        """
        for prompt in prompts:
            if read_spatial(prompt.text) is None and not read_numbers(prompt.text):
                raise ValueError(
                    f"the prompt {prompt.text[:60]!r} names neither two things and their position nor numbers of "
                    "things; give those of T2I-CompBench's spatial_val.txt or numeracy_val.txt"
                )

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict for each image; its details are the confidences of both things, or the numbers of all.

        Raises:
            ValueError: a prompt is of another kind, or the numbers of images and prompts differ.
        """
        if len(images) != len(prompts):
            raise ValueError(f"there are {len(images)} images and {len(prompts)} prompts; give one prompt per image")
        self.check(prompts)
        return [self._judge(image, prompt.text) for image, prompt in zip(images, prompts, strict=True)]

    def _judge(self, image: Image, text: str) -> Verdict:
        spatial = read_spatial(text)
        if spatial is None:
            return self._numbers(image, read_numbers(text))
        one, relation, other = spatial
        found = self._find(image, (one, other))
        seen = [found[name][0] if found[name] else None for name in (one, other)]
        missing = [name for name, each in zip((one, other), seen, strict=True) if each is None]
        score = spatial_score(relation, seen[0], seen[1])
        reason = (
            f"no {' and no '.join(missing)}" if missing else "" if score >= 0.5 else f"{one} is not {relation} {other}"
        )
        details = {name: each.confidence for name, each in zip((one, other), seen, strict=True) if each is not None}
        return Verdict(score, reason, details)

    def _numbers(self, image: Image, wanted: Sequence[tuple[str, int]]) -> Verdict:
        found = self._find(image, [name for name, _ in wanted])
        counts = {name: len(distinct_boxes([each.box for each in seen])) for name, seen in found.items()}
        wrong = [f"{counts[name]} {name} in place of {number}" for name, number in wanted if counts[name] != number]
        details = {name: float(count) for name, count in counts.items()}
        return Verdict(numeracy_score(counts, wanted), "; ".join(wrong), details)

    @torch.no_grad()
    def _find(self, image: Image, names: Sequence[str]) -> dict[str, list[Seen]]:
        """The boxes of each thing, the most confident first."""
        listed = list(dict.fromkeys(names))
        texts = [self.detector.template.format(name) for name in listed]
        (detections,) = self.detector.detect(images_from_pil([image]), texts)
        found = {}
        for column, name in enumerate(listed):
            scores = detections.scores[:, column]
            kept = distinct(detections.boxes, scores, MAX_OVERLAP, MAX_BOXES)
            kept = kept[scores[kept] > self.threshold]
            rows = zip(scores[kept].tolist(), detections.boxes[kept].tolist(), strict=True)
            found[name] = [Seen(confidence, box) for confidence, box in rows]
        return found
