"""Lists of questions about what a prompt asks for, answered by a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Unpack

import torch
from torch import Tensor

from ..core.checks import check_choice
from ..core.deferred import require
from ..core.wording import shown
from .registry import register_reward
from .vision_language.answers import Answer, surface_forms
from .vision_language.judge import CHECKPOINT, Judge, JudgeOptions
from .vision_language.judged_reward import JudgedReward
from .vision_language.question_lists import (
    AGGREGATES,
    Aggregate,
    Question,
    Questions,
    follow_parents,
    read_question_file,
    read_questions,
)

QUESTION_FORMAT = "{} Answer in one word."
"""How a question without choices is put, as in GenEval 2."""


@register_reward("questions")
class QuestionListReward(JudgedReward):
    """How many questions about an image a vision-language model answers as the prompt asks for.

    Each question scores the probability of its right answer, of all replies or, if it has choices, of those. The score
    of an image is made of these by `aggregate`. A question scores 0 where one that it depends on is not answered right.

    TIFA is `soft=False` on questions with choices; the Davidsonian Scene Graph (DSG) is `soft=False` on questions with
    the choices yes and no and with parents; Soft-TIFA is `aggregate="mean"` by atoms and `"geometric_mean"` by prompts,
    on questions without choices.

    Args:
        questions: the questions of each prompt: a mapping, a JSON file that holds one, or a function of the prompt.
            Each is a `Question`, its fields as a mapping, a pair of question and answer, or a question to be affirmed.
        judge: a checkpoint, or a judge that other rewards may share.
        aggregate: "mean", "product", "geometric_mean" or "soft_minimum" of the questions' scores; or a function of the
            scores `[Q]`.
        soft: whether questions score probabilities. If not, they score 1 where the right answer is the likeliest
            choice, or at least as likely as all other replies together; such scores have no gradient.
        question_format: how a question without choices is put, with `{}` in its place.
        options: of `VisionLanguageJudge`, where the judge is a checkpoint; `name` is that of the reward in reports.

    Raises:
        ImportError, OSError: as `VisionLanguageJudge`, or the file cannot be read.
        TypeError: options are given beside a judge.
        ValueError: questions are malformed, or one choice begins another in the model's tokens; `aggregate` is unknown;
            or as `VisionLanguageJudge`.

    Example:
        >>> class Judge:
        ...     differentiable = True
        ...     def probabilities(self, images, questions, answers, rows=None):
        ...         return torch.tensor([0.9 if "dog" in question else 0.4 for question in questions])
        >>> questions = {"a dog on the moon": ["Is there a dog?", ["What is it on?", "moon"]]}
        >>> reward = QuestionListReward(questions, Judge(), aggregate="geometric_mean")
        >>> reward(torch.rand(1, 3, 8, 8), ["a dog on the moon"])
        tensor([0.6000])

    Source: Hu et al. 2023 (TIFA), arXiv:2303.11897; Cho et al. 2024 (DSG), arXiv:2310.18235; Kamath et al. 2025
    (Soft-TIFA), arXiv:2512.16853.
    """

    source = "Hu et al. 2023, arXiv:2303.11897"
    default_reward_scale = 10.0

    def __init__(
        self,
        questions: Mapping[str, Questions] | str | PathLike[str] | Callable[[str], Questions],
        judge: str | PathLike[str] | Judge = CHECKPOINT,
        *,
        aggregate: str | Aggregate = "mean",
        soft: bool = True,
        question_format: str = QUESTION_FORMAT,
        **options: Unpack[JudgeOptions],
    ) -> None:
        if isinstance(aggregate, str):
            check_choice("aggregate", aggregate, tuple(AGGREGATES))
        if not isinstance(question_format, str) or "{}" not in question_format:
            raise ValueError(f"question_format is {shown(question_format)}; put {{}} in the question's place")
        if isinstance(questions, str | PathLike):
            questions = read_question_file(questions)
        listed = dict(questions) if isinstance(questions, Mapping) else {}
        if not listed and not callable(questions):
            raise ValueError(
                f"questions is {shown(questions)}; give a list of questions by prompt, a JSON file of such, or a "
                "function of the prompt"
            )
        self.questions = {prompt: read_questions(prompt, given) for prompt, given in listed.items()}
        self.function = questions if callable(questions) else None
        if self.questions:
            self.example_prompt = next(iter(self.questions))
        super().__init__(judge, "questions", **options)
        self.aggregate = AGGREGATES[aggregate] if isinstance(aggregate, str) else aggregate
        self.soft, self.question_format = soft, question_format
        self.differentiable = self.differentiable and soft
        for asked in self.questions.values():
            self._check_choices(asked)

    def questions_of(self, prompt: str) -> tuple[Question, ...]:
        """The questions of a prompt. A function is asked once for each.

        Raises:
            ValueError: there are none, or those that a function returned are malformed.
        """
        if prompt not in self.questions:
            if self.function is None:
                raise ValueError(
                    f"Reward '{self.name}' has no questions for the prompt {shown(prompt)}, but for "
                    f"{len(self.questions)} others; add a list under the prompt's own words, or give a function of the "
                    "prompt."
                )
            asked = read_questions(prompt, self.function(prompt))
            self._check_choices(asked)
            self.questions[prompt] = asked
        return self.questions[prompt]

    def _check_choices(self, asked: Sequence[Question]) -> None:
        for choices in {question.choices for question in asked}:
            self.check_exclusive([surface_forms(choice) for choice in choices])

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """See `Reward.check_prompts`: every prompt needs questions, which the judge can take."""
        self.check_questions([self.wording(question) for prompt in prompts for question in self.questions_of(prompt)])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of images `[B, 3, H, W]` in [0, 1] and `B` prompts that have questions."""
        return torch.stack([self.aggregate(scores) for scores in self.question_scores(images, prompts)])

    def question_scores(self, images: Tensor, prompts: Sequence[str]) -> list[Tensor]:
        """The scores `[Q]` of each image's questions, with their parents taken into account."""
        asked = [self.questions_of(prompt) for prompt in prompts]
        texts, answers, rows = self._pairs(asked)
        found = self.judge.probabilities(images, texts, answers, rows)
        taken, scored = iter(found.split([max(1, len(one.choices)) for each in asked for one in each])), []
        for each in asked:
            probabilities, is_right = zip(*(self._scored(one, next(taken)) for one in each), strict=True)
            right = torch.stack(is_right)
            scores = torch.stack(probabilities) if self.soft else right.to(found.dtype)
            scored.append(follow_parents(each, scores, right))
        return scored

    def wording(self, question: Question) -> str:
        """How a question is put to the judge."""
        if question.choices:
            return f"{question.text} Answer with one of: {', '.join(question.choices)}."
        return self.question_format.replace("{}", question.text)

    def _pairs(self, asked: Sequence[Sequence[Question]]) -> tuple[list[str], list[Answer], list[int]]:
        """What the judge is asked: a question for each choice, as one whose probability is to be known."""
        texts: list[str] = []
        answers: list[Answer] = []
        rows: list[int] = []
        for row, questions in enumerate(asked):
            for question in questions:
                wanted: tuple[Answer, ...] = question.choices or (question.answer,)
                texts += [self.wording(question)] * len(wanted)
                answers += [surface_forms(answer) if isinstance(answer, str) else answer for answer in wanted]
                rows += [row] * len(wanted)
        return texts, answers, rows

    def _scored(self, question: Question, found: Tensor) -> tuple[Tensor, Tensor]:
        """The probability of a question's right answer, and whether it is the model's own, both `[]`.

        Args:
            question: one that was asked.
            found: the probability of each choice, or of the right answer alone.
        """
        if not question.choices:
            return found[0], found[0] >= 0.5
        right = found[question.choices.index(str(question.answer))]
        require(
            found.sum() > 0,
            lambda: ValueError(
                f"Reward '{self.name}' has a judge that gives no choice of {shown(question.choices)} any probability; "
                f"word the question {shown(question.text)} so that it replies with one."
            ),
        )
        return right / found.sum(), right >= found.max()
