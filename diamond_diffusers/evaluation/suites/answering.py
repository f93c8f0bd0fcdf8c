"""Questions about images, put to any judge that tells how likely answers are."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from PIL.Image import Image

from ...rewards.preprocessing import images_from_pil
from ...rewards.vision_language.answers import surface_forms
from ...rewards.vision_language.judge import Judge, VisionLanguageJudge
from ..benchmark.prompts import Prompt
from .base import SuiteJudge

VLM = "Qwen/Qwen3-VL-8B-Instruct"
"""The model by which GenEval 2 answers its questions."""
MAX_QUESTIONS = 64
"""In one call of a model."""


@torch.no_grad()
def answer_probabilities(
    judge: Judge, pictures: Sequence[Image], questions: Sequence[str], answers: Sequence[str]
) -> list[float]:
    """How likely each question is to be answered so, in any of the answer's spellings.

    Args:
        judge: what answers.
        pictures: the RGB picture that each question is about; one that comes again is shown once.
        questions: the questions.
        answers: an answer to each.
    """
    rows_of_size: dict[tuple[int, int], list[int]] = {}
    for row, picture in enumerate(pictures):
        rows_of_size.setdefault(picture.size, []).append(row)
    found: dict[int, float] = {}
    for rows in rows_of_size.values():
        shown = list({id(pictures[row]): pictures[row] for row in rows}.values())
        places = {id(picture): place for place, picture in enumerate(shown)}
        probabilities = judge.probabilities(
            images_from_pil(shown),
            [questions[row] for row in rows],
            [surface_forms(answers[row]) for row in rows],
            [places[id(pictures[row])] for row in rows],
        )
        found |= zip(rows, probabilities.tolist(), strict=True)
    return [found[row] for row in range(len(questions))]


def yes_probabilities(judge: Judge, pictures: Sequence[Image], questions: Sequence[str]) -> list[float]:
    """The probability of yes among yes and no, for each question; 0 where the answer is sure to be neither."""
    both = [(picture, question) for picture, question in zip(pictures, questions, strict=True) for _ in range(2)]
    found = answer_probabilities(
        judge, [picture for picture, _ in both], [question for _, question in both], ["yes", "no"] * len(questions)
    )
    pairs = zip(found[::2], found[1::2], strict=True)
    return [yes / (yes + no) if yes + no > 0 else 0.0 for yes, no in pairs]


class QuestionSuite(SuiteJudge):
    """A suite whose questions a vision-language model answers.

    Args:
        vlm: what answers: a checkpoint, or an object that judges (`rewards.vision_language.judge.Judge`).
        device: device of a checkpoint's model.
        dtype: dtype of a checkpoint's model; by default its own.
    """

    def __init__(
        self,
        vlm: str | PathLike[str] | Judge = VLM,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(vlm, str | PathLike):
            vlm = VisionLanguageJudge(vlm, name=self.name, max_batch_size=MAX_QUESTIONS, device=device, dtype=dtype)
        self.vlm: Judge = vlm


def one_prompt_each(images: Sequence[Image], prompts: Sequence[Prompt]) -> list[tuple[Image, Prompt]]:
    """Each image, in RGB, with its prompt.

    Raises:
        ValueError: their numbers differ.
    """
    if len(images) != len(prompts):
        raise ValueError(f"there are {len(images)} images and {len(prompts)} prompts; give one prompt for each image")
    return [(image.convert("RGB"), prompt) for image, prompt in zip(images, prompts, strict=True)]


def grouped(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Values in groups of the given sizes, in their order."""
    remaining = iter(values)
    return [[next(remaining) for _ in range(count)] for count in counts]
