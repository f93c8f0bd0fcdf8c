"""Davidsonian Scene Graphs: questions with yes or no, which count only where those that they build on are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypedDict

from PIL.Image import Image

from ..benchmark.prompts import Prompt
from . import register_suite
from .answering import QuestionSuite, grouped, one_prompt_each, yes_probabilities
from .base import Verdict

COLLECTIONS = {
    "tifa": "tifa",
    "stanford": "paragraph",
    "localized": "paragraph",
    "countbench": "count",
    "vrd": "relation",
    "diffusion": "real user",
    "midjourney": "real user",
    "posescript": "pose",
    "whoops": "defying",
    "drawtext": "text",
}
"""DSG's names of the collections that its prompts are from."""


class _Question(TypedDict):
    id: int
    question: str
    tuple: str
    parents: list[int]


class _Metadata(TypedDict):
    questions: list[_Question]


@register_suite("dsg")
class DSGJudge(QuestionSuite):
    """Judges by questions with yes or no: the share of those answered with yes, whose parents are answered so too.

    A question whose parent is answered with no counts as no, whatever its own answer. Reported beside the score are the
    shares of yes by kind of question and, for DSG-1k, the scores by collection.

    Args:
        vlm: what answers: a checkpoint, or an object that judges (`rewards.vision_language.judge.Judge`); yes is the
            answer where it is likelier than no.
        device: device of a checkpoint's model.
        dtype: dtype of a checkpoint's model; by default its own.

    Source: Cho et al. 2024, "Davidsonian Scene Graph: Improving Reliability in Fine-grained Evaluation for
    Text-to-Image Generation".
    """

    name = "dsg"
    source = "Cho et al. 2024, arXiv:2310.18235"
    licence = "Apache-2.0"
    prompts = "dsg"
    needs = ("item_id", "questions")
    form = _Metadata
    is_transitive: ClassVar[bool] = False
    """Whether a question that counts as no for its parent's sake makes those that build on it count as no in turn."""

    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        self.check(prompts)
        asked = [
            (image, question["question"])
            for image, prompt in one_prompt_each(images, prompts)
            for question in prompt.metadata["questions"]
        ]
        yes = yes_probabilities(self.vlm, [image for image, _ in asked], [question for _, question in asked])
        rows = grouped(yes, [len(prompt.metadata["questions"]) for prompt in prompts])
        return [
            self.verdict(prompt, [float(probability > 0.5) for probability in row])
            for prompt, row in zip(prompts, rows, strict=True)
        ]

    @classmethod
    def verdict(cls, prompt: Prompt, answers: Sequence[float]) -> Verdict:
        """The verdict on an image, from the answers to the questions of its prompt, 1 for yes and 0 for no."""
        questions = prompt.metadata["questions"]
        given = {question["id"]: answer for question, answer in zip(questions, answers, strict=True)}
        counted = dict(given)
        judged_by = counted if cls.is_transitive else given
        for question in questions:
            # A parent that the item does not have cannot be answered with no.
            if any(judged_by.get(parent, 1.0) == 0 for parent in question["parents"]):
                counted[question["id"]] = 0.0
        wrong = [question["question"] for question in questions if counted[question["id"]] == 0]
        details = {str(number): answer for number, answer in given.items()}
        return Verdict(sum(counted.values()) / len(counted), "; ".join(wrong), details)

    @classmethod
    def parts(cls, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """The score under its collection, and the answers by kind of question."""
        found: dict[str, list[float]] = {}
        collection = next((name for part, name in COLLECTIONS.items() if part in prompt.metadata["item_id"]), None)
        if collection is not None:
            found[f"collection: {collection}"] = [verdict.score]
        return found | answers_by_kind(prompt, verdict)


def answers_by_kind(prompt: Prompt, verdict: Verdict) -> dict[str, list[float]]:
    """The answers to a prompt's questions, before parents are looked at, by the coarse and the fine kind of each."""
    found: dict[str, list[float]] = {}
    for question in prompt.metadata["questions"]:
        answer = verdict.details[str(question["id"])]
        fine = question["tuple"].partition("(")[0].strip()
        for kind in dict.fromkeys((fine.partition("-")[0].strip(), fine)):
            found.setdefault(kind, []).append(answer)
    return found
