"""UnifiedReward: a vision-language model that writes grades of alignment, coherence and style."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from os import PathLike
from typing import Any, Unpack

import torch
from torch import Tensor

from ..core.tensors import at_least_float32
from .degradations import JPEG
from .errors import first_line
from .hub import download_from_page, page_path
from .preprocessing import resize_like_pil
from .registry import register_reward
from .vision_language.judge import JudgeOptions, VisionLanguageJudge
from .vision_language.judged_reward import JudgedReward

REPOSITORY = "CodeGoat24/UnifiedReward-2.0-qwen-7b"
AXES = ("alignment", "coherence", "style")
LOWEST, HIGHEST = 1.0, 5.0

SCRIPT = (
    "https://raw.githubusercontent.com/CodeGoat24/UnifiedReward/ff6f520247a2d36e2aff7b2ba53a935afd437f66/"
    "inference_qwen/UnifiedReward-2.0-inference/point_score_ACS_image_generation.py"
)
"""The official program that grades an image; its question is read from it, and nothing of it is run."""
SHA256 = "fa67c436c6742084b43581d17bf3c98fa53aad5816ccd5ec39717c27c2a1dfa3"

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16384 * 28 * 28
"""Of the images that the official code gives the model."""


@register_reward("unifiedreward")
class UnifiedReward(JudgedReward):
    """Mean of the grades of alignment, coherence and style, each 1 to 5, that UnifiedReward 2.0 writes about the image.

    The model writes its grades as text, so that the score is a black box, and one image takes some 40 steps of the
    language model. As in the official code, it writes what is likeliest, about a JPEG file of the image. Each grade is
    a term of its own in reports.

    Args:
        checkpoint: a name on the Hub or a local folder: one of the checkpoints of UnifiedReward 2.0 for transformers.
        axes: which of the grades `"alignment"`, `"coherence"` and `"style"` count.
        question: what the model is asked, with `{}` in the prompt's place; None for the published question, which is
            downloaded once from the project's page, and checked by its hash.
        jpeg_quality: quality of the JPEG file, 1 to 95; None to show the model the image itself.
        max_new_tokens: after which an answer ends, finished or not.
        options: of `VisionLanguageJudge`, such as `device`, `dtype`, `quantization` and `max_batch_size`; `name` is
            that of the reward in reports.

    Raises:
        OSError: the checkpoint or the question cannot be found or read.
        TypeError: an option is unknown.
        ValueError: `axes`, `question` or `jpeg_quality` is malformed; or as `VisionLanguageJudge`.

    Source: Wang et al. 2025, "Unified Reward Model for Multimodal Understanding and Generation".
    """

    licence = "MIT (Qwen2.5-VL-7B: Apache-2.0)"
    source = "Wang et al. 2025, arXiv:2503.05236"
    size = "16.6 GB"
    default_reward_scale = 5.0
    hub_files = ((REPOSITORY, "config.json"),)
    differentiable = False
    judge: VisionLanguageJudge

    def __init__(
        self,
        checkpoint: str | PathLike[str] = REPOSITORY,
        *,
        axes: Sequence[str] = AXES,
        question: str | None = None,
        jpeg_quality: int | None = 95,
        max_new_tokens: int = 128,
        **options: Unpack[JudgeOptions],
    ) -> None:
        name = options.setdefault("name", "unifiedreward")
        if not axes or not set(axes) <= set(AXES):
            raise ValueError(f"Reward '{name}' got axes={axes!r}; give some of {', '.join(AXES)}.")
        if question is not None and "{}" not in question:
            raise ValueError(f"Reward '{name}' got question={question!r}; put {{}} in the prompt's place.")
        self.axes = tuple(axes)
        self.question = _published_question(name) if question is None else question
        self.max_new_tokens = max_new_tokens
        self._compress = None if jpeg_quality is None else JPEG(jpeg_quality)
        super().__init__(checkpoint, name, **options)
        self.differentiable = False

    @classmethod
    def missing_downloads(cls) -> list[str]:
        """See `Reward`; the question counts too."""
        path = page_path(SCRIPT)
        return super().missing_downloads() + ([] if path.exists() else [path.name])

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: a prompt must not hold a token that stands for an image."""
        self.check_questions(self._questions(prompts))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]`, 1 to 5, of images `[B, 3, H, W]` in [0, 1] and `B` prompts.

        Raises:
            ValueError: an answer lacks a grade.
        """
        grades = torch.tensor([self._grades(answer) for answer in self.answers(images, prompts)])
        for axis, of_axis in zip(self.axes, grades.T, strict=True):
            self.note(axis, of_axis)
        return grades.mean(1)

    def answers(self, images: Tensor, prompts: Sequence[str]) -> list[str]:
        """What the model writes about each of images `[B, 3, H, W]` in [0, 1] with `B` prompts."""
        images = at_least_float32(images.detach())
        shown = images if self._compress is None else self._compress(images)
        shown = resize_like_pil(shown, self._size(*images.shape[-2:]))
        return self.judge.generate(shown, self._questions(prompts), self.max_new_tokens)

    def _questions(self, prompts: Sequence[str]) -> list[str]:
        return [self.question.replace("{}", prompt) for prompt in prompts]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        processor: Any = self.judge.processor.image_processor
        factor = processor.patch_size * processor.merge_size
        size: tuple[int, int] = smart_resize(height, width, factor=factor, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
        return size

    def _grades(self, answer: str) -> list[float]:
        grades = grades_in(answer)
        lacking = [axis for axis in self.axes if axis not in grades]
        if lacking:
            raise ValueError(
                f"Reward '{self.name}' got an answer without a grade of {lacking[0]} from 1 to 5 ({answer[:200]!r}); "
                "raise max_new_tokens if it was cut off, and check that the checkpoint is one of UnifiedReward 2.0."
            )
        return [grades[axis] for axis in self.axes]


def grades_in(answer: str) -> dict[str, float]:
    """The grades from 1 to 5 that an answer gives by axis; of several of one axis, the last counts.

    Example:
        >>> grades_in("Alignment Score (1-5): 2.69\\nStyle Score (1-5): 4")
        {'alignment': 2.69, 'style': 4.0}
    """
    found = re.findall(rf"({'|'.join(AXES)}) score \(1-5\):\W*(\d+(?:\.\d+)?)", answer, re.IGNORECASE)
    grades = {axis.lower(): float(grade) for axis, grade in found}
    return {axis: grade for axis, grade in grades.items() if LOWEST <= grade <= HIGHEST}


def _published_question(name: str) -> str:
    try:
        path = download_from_page(SCRIPT, SHA256)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"Reward '{name}' cannot download its question from {SCRIPT} ({first_line(error)}); give question=..., the "
            "text in that file with {} in the prompt's place."
        ) from error
    return _question_in(path.read_text(encoding="utf-8"))


def _question_in(source: str) -> str:
    """The text that a program assigns to `problem`, with `{}` where it puts the prompt."""
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "problem":
            parts = statement.value.values if isinstance(statement.value, ast.JoinedStr) else []
            return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    raise ValueError("the official program has no question")
