"""Grades by a rubric, from a vision-language model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from typing import Unpack

from torch import Tensor

from ..core.deferred import require
from ..core.wording import shown
from .registry import register_reward
from .vision_language.answers import surface_forms
from .vision_language.judge import CHECKPOINT, Judge, JudgeOptions
from .vision_language.judged_reward import JudgedReward

ALIGNMENT = (
    'How well does this image show "{}"? '
    "1: nothing of it is there. 2: little of it is there. 3: about half of it is right. "
    "4: nearly all is right. 5: everything is there, as it is described."
)


@dataclass(frozen=True)
class Criterion:
    """One thing that an image is graded for.

    Attributes:
        rubric: what is asked, and what each grade means; `{}` stands for the prompt, where the rubric is about it.
        weight: a positive number, how much the grade counts beside those of other criteria.
    """

    rubric: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.rubric, str) or not self.rubric.strip():
            raise ValueError(f"rubric is {shown(self.rubric)}; give a text that says what each grade means")
        if not isinstance(self.weight, Real) or not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight is {shown(self.weight)}; give a positive number")


@register_reward("rubric")
class RubricReward(JudgedReward):
    """Grade that a vision-language model gives by a rubric, such as 1 to 5: the mean of its distribution of grades.

    The mean is that of the grades' values under the probabilities of the model's reply to be each of the grades, which
    are made to add up to 1. It tells images apart that would get the same grade, and is differentiable where the
    judge is. With several criteria the score is their weighted mean, and each is a term of its own in reports.

    Args:
        criteria: a rubric, or several by name, with weights as `Criterion`; by default one about the prompt.
        judge: a checkpoint, or a judge that other rewards may share.
        grades: whole numbers of at least 0, which are their own values, or words with their values. The model is told
            to choose one of them.
        normalised: whether scores are brought to [0, 1], where the lowest grade is 0 and the highest 1.
        options: of `VisionLanguageJudge`, where the judge is a checkpoint; `name` is that of the reward in reports.

    Raises:
        ImportError, OSError: as `VisionLanguageJudge`.
        TypeError: options are given beside a judge.
        ValueError: `criteria` or `grades` are malformed, or one grade begins another in the model's tokens, as 1
            begins 10 in many; or as `VisionLanguageJudge`.

    Example:
        >>> class Judge:
        ...     differentiable = True
        ...     def probabilities(self, images, questions, answers, rows=None):
        ...         return torch.tensor([0.5 if answer[0] in ("4", "5") else 0.0 for answer in answers])
        >>> reward = RubricReward("How sharp is it? 1: blurred. 5: sharp.", Judge())
        >>> reward(torch.rand(1, 3, 8, 8), ["a star"])
        tensor([4.5000])

    Source: Liu et al. 2023, "G-Eval: NLG Evaluation using GPT-4 with Better Human Alignment", arXiv:2303.16634, whose
    score is this mean.
    """

    source = "Liu et al. 2023, arXiv:2303.16634"
    default_reward_scale = 5.0

    def __init__(
        self,
        criteria: str | Criterion | Mapping[str, str | Criterion] = ALIGNMENT,
        judge: str | PathLike[str] | Judge = CHECKPOINT,
        *,
        grades: Sequence[int] | Mapping[str, float] = (1, 2, 3, 4, 5),
        normalised: bool = False,
        **options: Unpack[JudgeOptions],
    ) -> None:
        self.criteria = _read_criteria(criteria)
        self.grades = _read_grades(grades)
        super().__init__(judge, "rubric", **options)
        self.normalised = normalised
        # That of the whole range is the same in every unit.
        self.default_reward_scale = 20 / (1.0 if normalised else max(self.grades.values()) - min(self.grades.values()))
        self.answers = [surface_forms(grade) for grade in self.grades]
        self.check_exclusive(self.answers)
        self.reads_prompts = any("{}" in criterion.rubric for criterion in self.criteria.values())

    @property
    def term_names(self) -> list[str]:
        """The name of the reward, and of several criteria those of each."""
        parts = [f"{self.name}.{criterion}" for criterion in self.criteria] if len(self.criteria) > 1 else []
        return [self.name, *parts]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: the judge has to be able to take the questions."""
        self.check_questions(self._questions(prompts))

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean grades `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts."""
        grades = self.mean_grades(images, prompts)
        if len(self.criteria) > 1:
            for criterion, column in zip(self.criteria, grades.T, strict=True):
                self.note(criterion, column)
        weights = grades.new_tensor([criterion.weight for criterion in self.criteria.values()])
        return grades @ (weights / weights.sum())

    def mean_grades(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The mean grade of each image by each criterion, `[B, C]`.

        Raises:
            ValueError: the model gives no grade any probability.
        """
        questions = self._questions(prompts)
        rows = [row for row in range(len(prompts)) for _ in self.criteria]
        count = len(self.answers)
        found = self.judge.probabilities(
            images,
            [question for question in questions for _ in range(count)],
            self.answers * len(questions),
            [row for row in rows for _ in range(count)],
        ).reshape(len(prompts), len(self.criteria), count)
        total = found.sum(-1, keepdim=True)
        require(
            total > 0,
            lambda: ValueError(
                f"Reward '{self.name}' has a judge that gives none of the grades {', '.join(self.grades)} any "
                "probability; give a rubric or grades to which it replies with a grade."
            ),
        )
        values = found.new_tensor(list(self.grades.values()))
        if self.normalised:
            values = (values - values.min()) / (values.max() - values.min())
        return found / total @ values

    def _questions(self, prompts: Sequence[str]) -> list[str]:
        """Those of each prompt by all criteria, prompt after prompt."""
        return [self.question(criterion, prompt) for prompt in prompts for criterion in self.criteria.values()]

    def question(self, criterion: Criterion, prompt: str) -> str:
        """What the judge is asked."""
        *first, last = self.grades
        return f"{criterion.rubric.replace('{}', prompt)} Answer with {', '.join(first)} or {last} alone."


def _read_criteria(criteria: str | Criterion | Mapping[str, str | Criterion]) -> dict[str, Criterion]:
    named = criteria if isinstance(criteria, Mapping) else {"rubric": criteria}
    if not named:
        raise ValueError("criteria is {}; give at least one rubric")
    return {str(name): given if isinstance(given, Criterion) else Criterion(given) for name, given in named.items()}


def _read_grades(grades: Sequence[int] | Mapping[str, float]) -> dict[str, float]:
    """The value of each grade, by how it is written."""
    values = dict(grades) if isinstance(grades, Mapping) else {str(grade): grade for grade in grades}
    whole = isinstance(grades, Mapping) or all(
        isinstance(grade, int) and not isinstance(grade, bool) and grade >= 0 for grade in grades
    )
    read = {str(grade).strip(): value for grade, value in values.items()}
    finite = all(isinstance(value, Real) and math.isfinite(value) for value in read.values())
    if not whole or not finite or len(set(read.values())) < 2 or len(read) < len(list(grades)) or "" in read:
        raise ValueError(
            f"grades is {shown(grades)}; give at least two different whole numbers of at least 0, such as "
            "(1, 2, 3, 4, 5), or words with their values, such as {'bad': 0, 'good': 1}"
        )
    return {grade: float(value) for grade, value in read.items()}
