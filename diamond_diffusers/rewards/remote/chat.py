"""OpenAI-compatible chat completions with an image, as vLLM, SGLang and OpenAI serve them."""

from __future__ import annotations

import base64
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...core.wording import shown
from .protocols import AnswerError, RemoteProtocol
from .registry import PROTOCOLS, READERS

NUM_LOGPROBS = 20
"""The most that services tell of a token."""
LEAST_LOGPROB = -1000
"""Whose exponential is 0."""
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\w]|\.\d)")


class AnswerReader(ABC):
    """Reads a score from a chat's answer."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The fields of the request by which the answer holds what is read."""

    @abstractmethod
    def read(self, choice: Mapping[str, Any]) -> float:
        """The score in `choices[0]` of an answer.

        Raises:
            AnswerError: there is none.
        """


@READERS.register("number")
@dataclass(frozen=True)
class NumberAnswer(AnswerReader):
    """The one number of the answer's text, such as "7", "Score: 7.5" or "7/10".

    A text with several numbers is refused, for any of them may be the score.

    Args:
        lowest: of the scale that the question names.
        highest: of that scale.
        max_tokens: of the answer.

    Raises:
        ValueError: `lowest` is not below `highest`.

    Example:
        >>> NumberAnswer(0, 10).read({"message": {"content": "I rate it 7/10."}})
        7.0
    """

    lowest: float = 0.0
    highest: float = 10.0
    max_tokens: int = 16

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise ValueError(f"lowest is {self.lowest} and highest {self.highest}; give lowest < highest")

    @property
    def options(self) -> dict[str, Any]:
        """A short answer."""
        return {"max_tokens": self.max_tokens}

    def read(self, choice: Mapping[str, Any]) -> float:
        """The number."""
        text = _text(choice)
        scale = rf"\s*(?:/|out of)\s*{self.highest:g}(?:\.0+)?(?!\w|\.\d)"
        numbers = NUMBER.findall(re.sub(scale, " ", text, flags=re.IGNORECASE))
        ask = f"let the question ask for one number from {self.lowest:g} to {self.highest:g} alone"
        if len(numbers) != 1:
            found = f"{len(numbers)} numbers" if numbers else "no number"
            raise AnswerError(f"the text {text!r:.120}, which holds {found}", ask)
        score = float(numbers[0])
        if not self.lowest <= score <= self.highest:
            raise AnswerError(f"the number {numbers[0]}, which is not from {self.lowest:g} to {self.highest:g}", ask)
        return score


@READERS.register("yes")
@dataclass(frozen=True)
class YesProbability(AnswerReader):
    """The probability that the answer's first token is "yes" and not "no": `p(yes) / (p(yes) + p(no))`.

    Capitals and blanks do not count. Of the tokens, the service tells the 20 likeliest; a word that is not among them
    counts as 0, and the answer is refused where both are missing.

    Example:
        >>> tokens = [{"token": "Yes", "logprob": math.log(0.5)}, {"token": " no", "logprob": math.log(0.5)}]
        >>> YesProbability().read({"logprobs": {"content": [{"top_logprobs": tokens}]}})
        0.5
    """

    @property
    def options(self) -> dict[str, Any]:
        """One token, with its alternatives."""
        return _first_token()

    def read(self, choice: Mapping[str, Any]) -> float:
        """The probability."""
        found = {"yes": 0.0, "no": 0.0}
        for word, probability in _first_words(choice):
            if word in found:
                found[word] += probability
        total = sum(found.values())
        if total == 0:
            raise AnswerError(
                "a first token that is neither yes nor no", "let the question say: Answer with yes or no alone"
            )
        return found["yes"] / total


@READERS.register("grade")
@dataclass(frozen=True)
class ExpectedGrade(AnswerReader):
    """The mean grade, by the probabilities of the answer's first token: finer than the likeliest grade.

    Args:
        lowest: grade, from 0.
        highest: grade, up to 9: of "10", many models write the first digit first.

    Raises:
        ValueError: the grades are no digits, or `lowest` is not below `highest`.

    Example:
        >>> tokens = [{"token": "4", "logprob": math.log(0.5)}, {"token": "5", "logprob": math.log(0.5)}]
        >>> ExpectedGrade().read({"logprobs": {"content": [{"top_logprobs": tokens}]}})
        4.5
    """

    lowest: int = 1
    highest: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < self.highest <= 9:
            raise ValueError(f"lowest is {self.lowest} and highest {self.highest}; give two digits, lowest < highest")

    @property
    def options(self) -> dict[str, Any]:
        """One token, with its alternatives."""
        return _first_token()

    def read(self, choice: Mapping[str, Any]) -> float:
        """The mean."""
        grades = [str(grade) for grade in range(self.lowest, self.highest + 1)]
        found = [(int(word), probability) for word, probability in _first_words(choice) if word in grades]
        total = sum(probability for _, probability in found)
        if total == 0:
            raise AnswerError(
                f"a first token that is no grade from {self.lowest} to {self.highest}",
                f"let the question say: Answer with a number from {self.lowest} to {self.highest} alone",
            )
        return sum(grade * probability for grade, probability in found) / total


@PROTOCOLS.register("chat")
@dataclass(frozen=True)
class ChatCompletions(RemoteProtocol):
    """A vision-language model behind an OpenAI-compatible service, asked about one image at a time.

    Args:
        model: its name there.
        question: what is asked, with `{}` in the prompt's place.
        reader: how the score is read from the answer.
        options: further fields of the request, in place of those that are sent (`temperature: 0` and those of the
            reader); None leaves one out. OpenAI's reasoning models want
            `{"max_tokens": None, "max_completion_tokens": 1000, "temperature": None}`.

    Raises:
        ValueError: `model` or `question` is empty.

    Example:
        >>> judge = ChatCompletions("Qwen/Qwen2.5-VL-7B-Instruct", 'Does this show "{}"? Answer yes or no.')
        >>> judge.body([b"PNG"], ["a red star"])["messages"][0]["content"][1]["text"]
        'Does this show "a red star"? Answer yes or no.'
    """

    model: str
    question: str
    reader: AnswerReader = field(default_factory=NumberAnswer)
    options: Mapping[str, Any] = field(default_factory=dict)

    path = "chat/completions"
    max_images = 1

    def __post_init__(self) -> None:
        for name in ("model", "question"):
            if not isinstance(given := getattr(self, name), str) or not given:
                raise ValueError(f"{name} is {shown(given)}; give a text")
        if not isinstance(self.reader, AnswerReader):
            raise ValueError(f"reader is {shown(self.reader)}; give an AnswerReader, such as NumberAnswer(0, 10)")

    @property
    def reads_prompts(self) -> bool:  # type: ignore[override]
        """Whether the question has a place for the prompt."""
        return "{}" in self.question

    def body(self, images: Sequence[bytes], prompts: Sequence[str]) -> dict[str, Any]:
        """A conversation of one turn: the image, then the question."""
        (image,), (prompt,) = images, prompts
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self.question.replace("{}", prompt)},
        ]
        fields = {"temperature": 0, **self.reader.options, **self.options}
        given = {name: value for name, value in fields.items() if value is not None}
        return {"model": self.model, "messages": [{"role": "user", "content": content}], **given}

    def scores(self, answer: Any, count: int) -> list[float]:
        """The one score."""
        choices = answer.get("choices") if isinstance(answer, Mapping) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise AnswerError("no 'choices' of a chat", "give the URL of an OpenAI-compatible service, up to its /v1")
        return [self.reader.read(choices[0])]


def _text(choice: Mapping[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise AnswerError(
            "a message without text", "raise max_tokens, or take a model that does not refuse the question"
        )
    return text


def _first_token() -> dict[str, Any]:
    return {"max_tokens": 1, "logprobs": True, "top_logprobs": NUM_LOGPROBS}


def _first_words(choice: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The likeliest first tokens of an answer, in small letters and without blanks, and their probabilities."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    first = content[0] if isinstance(content, list) and content else None
    tokens = first.get("top_logprobs") if isinstance(first, Mapping) else None
    if not isinstance(tokens, list) or not tokens:
        raise AnswerError("no 'top_logprobs'", "let the service tell them, or read the answer by NumberAnswer")
    for each in tokens:
        token, logprob = (each.get("token"), each.get("logprob")) if isinstance(each, Mapping) else (None, None)
        if isinstance(token, str) and isinstance(logprob, int | float) and logprob <= 1e-3:
            # Tokens of sentencepiece and of byte-level vocabularies begin with a mark in place of the blank.
            # Whole numbers may be larger than a float can hold.
            yield token.strip(" \n\t\u2581\u0120").lower(), math.exp(max(logprob, LEAST_LOGPROB))
