"""T2I-CompBench: colours, shapes, textures and actions, and prompts that join them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from os import PathLike
from typing import NotRequired, TypedDict

import torch
from PIL.Image import Image

from ...rewards.clip import CLIPReward
from ...rewards.preprocessing import images_from_pil
from ...rewards.vision_language.judge import Judge
from ..benchmark.prompts import Prompt
from . import register_suite
from .answering import grouped, one_prompt_each, yes_probabilities
from .base import SuiteJudge, Verdict
from .blip import BLIP_VQA, BLIPJudge
from .noun_phrases import Parser, SpacyParser

ATTRIBUTES = ("color", "shape", "texture")
ACTIONS = ("non_spatial",)
COMPLEX = ("complex_spatial", "complex_action", "complex_spatialaction")
POSITIONS = ("spatial", *COMPLEX)
"""What needs a score of positions."""
MAX_PHRASES = 8
"""The published program asks for the first so many noun phrases."""

SpatialScorer = Callable[[Image, str], float]
"""The score of an image and a prompt by T2I-CompBench's rule of positions, from 0 to 1."""


class _Metadata(TypedDict):
    noun_phrases: NotRequired[list[str]]


@register_suite("t2i_compbench")
class T2ICompBenchJudge(SuiteJudge):
    """Judges colours, shapes and textures by BLIP-VQA, and what things do to each other by CLIP.

    * `color`, `shape`, `texture`: the product of the probabilities of yes, among yes and no, to the noun phrases of the
      prompt, each put as a question of its own ("a green bench?").
    * `non_spatial`: the cosine of CLIP ViT-B/32.
    * `complex_spatial`, `complex_action`, `complex_spatialaction`: the mean of the attributes' score, and of those of
      positions and of CLIP (without adjectives) that the prompt asks for ("3-in-1"); it needs `spatial`.

    The category of a prompt is the name of its file, such as `color_val`. Positions and numbers alone are judged by
    UniDet in the published program, which has no counterpart here; without `spatial` their prompts are refused.

    Args:
        vlm: what answers: a `BlipForQuestionAnswering` by name or folder, or an object that judges
            (`rewards.vision_language.judge.Judge`).
        clip: a CLIP in any form that `CLIPReward` takes.
        parser: splits prompts; spaCy's by default. Phrases under `noun_phrases` in a prompt's metadata go before it.
        spatial: the score of positions.
        device: device of both models.
        dtype: dtype of both models.

    Source: Huang et al. 2023, "T2I-CompBench: A Comprehensive Benchmark for Open-world Compositional Text-to-image
    Generation".
    """

    name = "t2i_compbench"
    source = "Huang et al. 2023, arXiv:2307.06350"
    licence = "MIT"
    prompts = "t2i_compbench_color"
    form = _Metadata

    def __init__(
        self,
        vlm: str | PathLike[str] | Judge = BLIP_VQA,
        clip: str | PathLike[str] | CLIPReward = "openai/clip-vit-base-patch32",
        *,
        parser: Parser | None = None,
        spatial: SpatialScorer | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._parser, self._clip = parser, clip
        self.spatial, self.device, self.dtype = spatial, device, dtype
        if isinstance(vlm, str | PathLike):
            self.vlm: Judge = BLIPJudge(vlm, device=device, dtype=dtype)
        else:
            self.vlm = vlm

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        super().check(prompts)
        _check_kinds(prompts, (*ATTRIBUTES, *ACTIONS))
        if any(kind_of(prompt) in ATTRIBUTES and "noun_phrases" not in prompt.metadata for prompt in prompts):
            SpacyParser()

    @property
    def parser(self) -> Parser:
        """What splits prompts."""
        if self._parser is None:
            self._parser = SpacyParser()
        return self._parser

    @property
    def clip(self) -> CLIPReward:
        """What judges actions; loaded where there are any."""
        if not isinstance(self._clip, CLIPReward):
            self._clip = CLIPReward(self._clip, device=self.device, dtype=self.dtype or torch.float32)
        return self._clip

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        _check_kinds(prompts, (*ATTRIBUTES, *ACTIONS, *(() if self.spatial is None else POSITIONS)))
        pairs = one_prompt_each(images, prompts)
        by_attributes = [pair for pair in pairs if kind_of(pair[1]) in (*ATTRIBUTES, *COMPLEX)]
        attributes = iter(self._attributes(by_attributes))
        return [
            self._verdict(image, prompt, next(attributes) if kind_of(prompt) in (*ATTRIBUTES, *COMPLEX) else None)
            for image, prompt in pairs
        ]

    def _attributes(self, pairs: Sequence[tuple[Image, Prompt]]) -> list[dict[str, float]]:
        """The probabilities of yes to the noun phrases of each prompt."""
        phrases = [self._phrases(prompt) for _, prompt in pairs]
        asked = [(image, phrase) for (image, _), own in zip(pairs, phrases, strict=True) for phrase in own]
        questions = [f"{phrase}?" for _, phrase in asked]
        found = grouped(
            yes_probabilities(self.vlm, [image for image, _ in asked], questions), [len(own) for own in phrases]
        )
        return [
            {f"{number}. {phrase}": score for number, (phrase, score) in enumerate(zip(own, scores, strict=True), 1)}
            for own, scores in zip(phrases, found, strict=True)
        ]

    def _phrases(self, prompt: Prompt) -> list[str]:
        given = prompt.metadata.get("noun_phrases")
        return list(self.parser.noun_phrases(prompt.text) if given is None else given)[:MAX_PHRASES]

    def _verdict(self, image: Image, prompt: Prompt, details: dict[str, float] | None) -> Verdict:
        kind = kind_of(prompt)
        if details is None:
            score = self._cosine(image, prompt.text) if kind in ACTIONS else self._position(image, prompt)
            return Verdict(score)
        attribute = math.prod(details.values())
        missing = "; ".join(phrase for phrase, score in details.items() if score < 0.5)
        if kind in ATTRIBUTES:
            return Verdict(attribute, missing, details)
        parts = {"attribute": attribute}
        if "spatial" in kind:
            parts["spatial"] = self._position(image, prompt)
        if "action" in kind:
            parts["action"] = self._cosine(image, self.parser.without_adjectives(prompt.text))
        return Verdict(three_in_one(**parts), missing, details | parts)

    @torch.no_grad()
    def _cosine(self, image: Image, text: str) -> float:
        return self.clip(images_from_pil([image]).to(self.device), [text]).item()

    def _position(self, image: Image, prompt: Prompt) -> float:
        assert self.spatial is not None, "check has refused the prompt"
        return float(self.spatial(image, prompt.text))


def _check_kinds(prompts: Sequence[Prompt], judged: Sequence[str]) -> None:
    """Raises a `ValueError` where the category of a prompt is none of those that are judged."""
    for prompt in prompts:
        if kind_of(prompt) not in judged:
            raise ValueError(
                f"the prompt {prompt.text[:60]!r} is of the category {prompt.category!r}, but suite 't2i_compbench' "
                f"judges {', '.join(f'{kind}_val' for kind in judged)}; give the prompts of one of these files, or, in "
                "Python, `spatial` for positions"
            )


def kind_of(prompt: Prompt) -> str:
    """The category of a prompt, without the part of the data that it is from: `color` for `color_val`."""
    return "_".join(part for part in prompt.category.split("_") if part not in ("val", "train", "seen", "unseen"))


def three_in_one(attribute: float, spatial: float | None = None, action: float | None = None) -> float:
    """The mean of those of the three scores that a complex prompt asks for."""
    scores = [score for score in (attribute, spatial, action) if score is not None]
    return sum(scores) / len(scores)
