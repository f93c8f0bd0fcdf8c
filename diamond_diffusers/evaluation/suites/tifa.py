"""TIFA: questions with several choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import TypedDict

from PIL.Image import Image

from ..benchmark.prompts import Prompt
from . import register_suite
from .answering import QuestionSuite, answer_probabilities, grouped, one_prompt_each
from .base import Verdict


class _Question(TypedDict):
    question: str
    choices: list[str]
    answer: str
    element_type: str


class _Metadata(TypedDict):
    questions: list[_Question]


@register_suite("tifa")
class TIFAJudge(QuestionSuite):
    """Judges by questions with several choices: the share of those for which the right choice is the likeliest.

    The choices are put with letters, and the likeliest letter is the answer; the published program lets a model answer
    freely and takes the choice that is most similar. Reported beside the score are the shares by type of element.

    Args:
        vlm: what answers: a checkpoint, or an object that judges (`rewards.vision_language.judge.Judge`).
        device: device of a checkpoint's model.
        dtype: dtype of a checkpoint's model; by default its own.

    Source: Hu et al. 2023, "TIFA: Accurate and Interpretable Text-to-Image Faithfulness Evaluation with Question
    Answering".
    """

    name = "tifa"
    source = "Hu et al. 2023, arXiv:2303.11897"
    licence = "Apache-2.0"
    prompts = "tifa"
    needs = ("item_id", "questions")
    form = _Metadata

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            questions = prompt.metadata.get("questions")
            given = [one for one in questions if isinstance(one, Mapping)] if isinstance(questions, list) else []
            if not all(one.get("choices") for one in given):
                raise ValueError(
                    f"the prompt {prompt.text[:60]!r} has a question without choices, which suite 'tifa' needs; give "
                    "--prompts tifa, or take --suite dsg for questions with yes or no"
                )
        super().check(prompts)

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        self.check(prompts)
        asked = [
            (image, question)
            for image, prompt in one_prompt_each(images, prompts)
            for question in prompt.metadata["questions"]
        ]
        texts = [with_choices(question["question"], question["choices"]) for _, question in asked]
        each = [
            (image, text, letter)
            for (image, question), text in zip(asked, texts, strict=True)
            for letter, _ in zip(ascii_uppercase, question["choices"], strict=False)
        ]
        of_letters = answer_probabilities(self.vlm, *zip(*each, strict=True))
        found = grouped(of_letters, [len(question["choices"]) for _, question in asked])
        chosen = [question["choices"][row.index(max(row))] for (_, question), row in zip(asked, found, strict=True)]
        rows = grouped(chosen, [len(prompt.metadata["questions"]) for prompt in prompts])
        return [verdict_of(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    @classmethod
    def parts(cls, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """The scores of the questions by type of element."""
        found: dict[str, list[float]] = {}
        for question, score in zip(prompt.metadata["questions"], verdict.details.values(), strict=True):
            found.setdefault(question["element_type"], []).append(score)
        return found


def with_choices(question: str, choices: Sequence[str]) -> str:
    """A question with its choices, one a line after its letter."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the right choice."])


def verdict_of(prompt: Prompt, chosen: Sequence[str]) -> Verdict:
    """The verdict on an image, from the choices that were made for the questions of its prompt."""
    details, wrong = {}, []
    for number, (question, choice) in enumerate(zip(prompt.metadata["questions"], chosen, strict=True), 1):
        details[f"{number}. {question['question']}"] = float(choice == question["answer"])
        if choice != question["answer"]:
            wrong.append(f"{question['question']} {choice}")
    return Verdict(sum(details.values()) / len(details), "; ".join(wrong), details)
