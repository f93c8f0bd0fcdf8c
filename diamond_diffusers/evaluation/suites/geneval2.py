"""GenEval 2: questions on objects, attributes, numbers, relations and verbs, by Soft-TIFA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict

from PIL.Image import Image

from ..benchmark.prompts import Prompt
from . import register_suite
from .answering import QuestionSuite, answer_probabilities, grouped, one_prompt_each
from .base import Verdict

ARITHMETIC_MEAN = "Soft-TIFA AM"
WRONG = 0.5
"""Below this probability the right answer to a question is named as wrong."""


class _Metadata(TypedDict):
    vqa_list: list[list[str]]
    skills: list[str]


@register_suite("geneval2")
class GenEval2Judge(QuestionSuite):
    """Judges by Soft-TIFA: the geometric mean of the probabilities of the right answers to all questions of a prompt.

    Each question is put with "Answer in one word.", and the probability of its answer is that of all its
    spellings. Reported beside it are the arithmetic mean ("Soft-TIFA AM") and the means of each skill; the
    categories are the numbers of atoms of the prompts. Scores are comparable with published ones where `vlm` is
    GenEval 2's own, which is the default.

    Args:
        vlm: what answers: a checkpoint, or an object that judges (`rewards.vision_language.judge.Judge`).
        device: device of a checkpoint's model.
        dtype: dtype of a checkpoint's model; by default its own.

    Source: Kamath et al. 2025, "GenEval 2: Addressing Benchmark Drift in Text-to-Image Evaluation".
    """

    name = "geneval2"
    source = "Kamath et al. 2025, arXiv:2512.16853"
    licence = "CC BY-NC 4.0"
    prompts = "geneval2"
    needs = ("vqa_list", "skills")
    form = _Metadata

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        super().check(prompts)
        for prompt in prompts:
            pairs, skills = prompt.metadata["vqa_list"], prompt.metadata["skills"]
            if len(pairs) != len(skills) or any(len(pair) != 2 for pair in pairs):
                raise ValueError(
                    f"the prompt {prompt.text[:60]!r} has {len(pairs)} questions for {len(skills)} skills; give pairs "
                    "of a question and its answer, and a skill for each"
                )

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        self.check(prompts)
        asked = [
            (image, question, _answer(question, answer))
            for image, prompt in one_prompt_each(images, prompts)
            for question, answer in prompt.metadata["vqa_list"]
        ]
        questions = [f"{question} Answer in one word." for _, question, _ in asked]
        answers = [answer for _, _, answer in asked]
        found = answer_probabilities(self.vlm, [image for image, _, _ in asked], questions, answers)
        counts = [len(prompt.metadata["vqa_list"]) for prompt in prompts]
        rows = grouped(found, counts)
        return [soft_tifa(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    @classmethod
    def parts(cls, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """The arithmetic mean, and the probabilities of each skill."""
        scores = list(verdict.details.values())
        found: dict[str, list[float]] = {ARITHMETIC_MEAN: [sum(scores) / len(scores)]}
        for skill, score in zip(prompt.metadata["skills"], scores, strict=True):
            found.setdefault(skill, []).append(score)
        return found


def soft_tifa(prompt: Prompt, probabilities: Sequence[float]) -> Verdict:
    """The verdict on an image, from the probabilities of the right answers to the questions of its prompt."""
    questions = [question for question, _ in prompt.metadata["vqa_list"]]
    # A geometric mean with a factor 0 is 0.
    total = sum(map(math.log, probabilities)) if min(probabilities) > 0 else -math.inf
    wrong = [question for question, probability in zip(questions, probabilities, strict=True) if probability < WRONG]
    # A question may come twice, for instance of two things of one name.
    details = {f"{number}. {question}": score for number, (question, score) in _numbered(questions, probabilities)}
    return Verdict(math.exp(total / len(probabilities)), "; ".join(wrong), details)


def _numbered(questions: Sequence[str], scores: Sequence[float]) -> list[tuple[int, tuple[str, float]]]:
    return list(enumerate(zip(questions, scores, strict=True), 1))


def _answer(question: str, answer: str) -> str:
    """The right answer: only questions for a number have another than yes."""
    return answer if question.startswith("How many") else "yes"
