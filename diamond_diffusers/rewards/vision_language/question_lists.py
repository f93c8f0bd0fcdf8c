"""Questions about what a prompt asks for, with the answers that a right image gets, and what becomes of the answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...core.wording import shown

Aggregate: TypeAlias = Callable[[Tensor], Tensor]
"""The score `[]` of an image of the scores `[Q]` of its questions."""


@dataclass(frozen=True)
class Question:
    """A question about an image, with the answer that a right image gets.

    Attributes:
        text: the question.
        answer: the answer that is right; or its several forms, which then are all that count.
        choices: what the answer is chosen from, such as ("yes", "no"); without any, every other reply is wrong.
        parents: the places in the list of the questions that have to be answered right for this one to make sense:
            whether the dog is brown depends on whether there is a dog.
    """

    text: str
    answer: str | tuple[str, ...] = "yes"
    choices: tuple[str, ...] = ()
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("answer", "choices", "parents"):
            if isinstance(given := getattr(self, name), list):
                object.__setattr__(self, name, tuple(given))
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"text is {shown(self.text)}; give a question")
        forms = (self.answer,) if isinstance(self.answer, str) else self.answer
        if not _are_texts(forms) or not forms:
            raise ValueError(f"answer is {shown(self.answer)}; give a text, or a tuple of the forms that count")
        if not _are_texts(self.choices):
            raise ValueError(f"choices is {shown(self.choices)}; give a list of texts, such as ['yes', 'no']")
        if self.choices and (self.answer not in self.choices or len(set(self.choices)) < 2):
            raise ValueError(
                f"choices is {shown(self.choices)} with the answer {shown(self.answer)}; give at least two different "
                "ones, and the answer among them"
            )
        are_places = isinstance(self.parents, tuple) and all(
            isinstance(parent, int) and not isinstance(parent, bool) and parent >= 0 for parent in self.parents
        )
        if not are_places:
            raise ValueError(f"parents is {shown(self.parents)}; give a list of places in the list, from 0")


def _are_texts(given: object) -> bool:
    return isinstance(given, tuple) and all(isinstance(text, str) and text.strip() for text in given)


Questions: TypeAlias = Sequence[Question | str | Sequence[str] | Mapping[str, Any]]
"""A list of questions: each a `Question`, its fields, a pair of question and answer, or a question to be affirmed."""


def read_questions(prompt: str, given: Questions) -> tuple[Question, ...]:
    """The questions of a prompt.

    Raises:
        ValueError: they are malformed, or a parent is none of the others.
    """
    try:
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise ValueError(f"they are {shown(given)}; give a list of at least one question")
        questions = tuple(_read_question(one) for one in given)
        for place, question in enumerate(questions):
            if any(parent >= len(questions) or parent == place for parent in question.parents):
                raise ValueError(
                    f"question {place} has the parents {list(question.parents)}; give places of others in the list of "
                    f"{len(questions)}, from 0"
                )
    except (TypeError, ValueError) as error:
        raise ValueError(f"the questions of the prompt {shown(prompt)} are malformed: {error}") from error
    return questions


def read_question_file(path: str | PathLike[str]) -> dict[str, Questions]:
    """The questions of each prompt, from a JSON file that holds an object of lists.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        # Some editors put a mark before the text.
        found = json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise OSError(
            f"questions is '{path}', which cannot be read ({error.strerror or error}); give a JSON file"
        ) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ValueError(f"questions is '{path}', which is no JSON ({error}); give an object of lists") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"questions is '{path}', which holds {shown(found)}; give an object with a list for each prompt"
        )
    return found


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, of which JSON would keep the last of equal keys alone, such as one of two lists of a prompt."""
    keys = [key for key, _ in pairs]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise ValueError(f"it has {shown(key)} twice")
    return dict(pairs)


def _read_question(given: Any) -> Question:
    if isinstance(given, Question):
        return given
    if isinstance(given, str):
        return Question(given)
    if isinstance(given, Mapping):
        named = {"text" if key == "question" else key: value for key, value in given.items()}
        if "text" not in named or not named.keys() <= Question.__annotations__.keys():
            raise ValueError(f"one has the fields {shown(list(given))}; give question, answer, choices and parents")
        return Question(**named)
    if isinstance(given, Sequence) and len(given) == 2:
        text, answer = given
        return Question(text, answer)
    raise ValueError(f"one is {shown(given)}; give a question, or a question with its answer")


def follow_parents(questions: Sequence[Question], scores: Tensor, is_right: Tensor) -> Tensor:
    """Scores `[Q]`, of which those are 0 that have a parent which was not answered right, by `is_right` `[Q]`.

    As in the Davidsonian Scene Graph (Cho et al. 2024, arXiv:2310.18235), a parent counts by its own answer alone, and
    not by those of its parents.
    """
    makes_sense = [
        is_right[list(question.parents)].all() if question.parents else torch.ones_like(right)
        for question, right in zip(questions, is_right, strict=True)
    ]
    return torch.where(torch.stack(makes_sense), scores, torch.zeros_like(scores))


def mean(scores: Tensor) -> Tensor:
    """The arithmetic mean: the share of what is right."""
    return scores.mean()


def product(scores: Tensor) -> Tensor:
    """The product: the probability that all is right, were the questions independent."""
    return scores.prod()


def geometric_mean(scores: Tensor) -> Tensor:
    """The geometric mean; 0 where a score is."""
    # The logarithm of 0 has no gradient that could be used.
    positive = torch.where(scores > 0, scores, torch.ones_like(scores))
    return torch.where((scores > 0).all(), positive.log().mean().exp(), torch.zeros_like(scores[0]))


def soft_minimum(scores: Tensor, temperature: float = 0.1) -> Tensor:
    """`-T log mean exp(-scores / T)`: nearly the least score at a small temperature T, and the mean at a large one."""
    return -temperature * ((-scores / temperature).logsumexp(0) - math.log(len(scores)))


AGGREGATES: dict[str, Aggregate] = {
    "mean": mean,
    "product": product,
    "geometric_mean": geometric_mean,
    "soft_minimum": soft_minimum,
}
"""How the scores of an image's questions become one."""
