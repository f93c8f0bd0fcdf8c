"""Questions about images, and the models that answer them."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Protocol

import torch
from PIL.Image import Image

from ...rewards.vqascore import VQAScoreReward
from ..benchmark.prompts import Prompt

VLM = "Qwen/Qwen3-VL-8B-Instruct"
"""The model by which GenEval 2 answers its questions."""
_DIGITS = {
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}


class Answerer(Protocol):
    """What answers questions about images."""

    def probabilities(
        self, images: Sequence[Image], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """The probability with which the answer to each question begins as each of its possible answers.

        Args:
            images: one RGB image for each question.
            questions: the questions.
            answers: the possible answers of each question.
        """


class VLMAnswerer:
    """Answers with a vision-language model: the probabilities are those of the first token of its answer.

    Args:
        checkpoint: an image-text-to-text model of transformers that answers at once, see `VQAScoreReward`.
        batch_size: number of questions in one call of the model.
        device: device of the model.
        dtype: dtype of the model; by default the checkpoint's own.
        hub_options: forwarded to `from_pretrained`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        ValueError: it is no such model.
    """

    def __init__(
        self,
        checkpoint: str | PathLike[str] = VLM,
        *,
        batch_size: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **hub_options: Any,
    ) -> None:
        loaded = VQAScoreReward(checkpoint, name="vlm", question="{}", device=device, dtype=dtype, **hub_options)
        self.model, self.processor, self.batch_size = loaded.model, loaded.processor, batch_size

    @torch.no_grad()
    def probabilities(
        self, images: Sequence[Image], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(questions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            first = self._first_tokens(images[rows], questions[rows])
            found += [
                [tokens[self._ids(answer)].sum().item() for answer in possible]
                for tokens, possible in zip(first, answers[rows], strict=True)
            ]
        return found

    def _first_tokens(self, images: Sequence[Image], questions: Sequence[str]) -> torch.Tensor:
        """The law `[B, vocabulary]` of the first token of each answer."""
        texts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
                add_generation_prompt=True,
            )
            for question in questions
        ]
        inputs = self.processor(text=texts, images=[[image] for image in images], padding=True, return_tensors="pt")
        logits = self.model(**inputs.to(self.model.device), use_cache=False).logits[:, -1]
        return logits.float().softmax(-1)

    def _ids(self, answer: str) -> list[int]:
        """The distinct tokens with which an answer may begin."""
        encoded = (self.processor.tokenizer.encode(each, add_special_tokens=False) for each in spellings(answer))
        return sorted({ids[0] for ids in encoded if ids})


def spellings(answer: str) -> list[str]:
    """The ways in which an answer may be written, as GenEval 2 counts them: with a capital, a space, or as a digit.

    Example:
        >>> spellings("two")
        ['two', 'Two', ' two', ' Two', '2', ' 2']
    """
    words = [answer, answer.capitalize()]
    digit = _DIGITS.get(answer.lower())
    return [*words, *(f" {word}" for word in words), *([] if digit is None else [digit, f" {digit}"])]


def yes_probabilities(answerer: Answerer, images: Sequence[Image], questions: Sequence[str]) -> list[float]:
    """The probability of yes among yes and no, for each question; 0 where the answer is sure to be neither."""
    pairs = answerer.probabilities(images, questions, [("yes", "no")] * len(questions))
    return [yes / (yes + no) if yes + no > 0 else 0.0 for yes, no in pairs]


def answerer_of(
    vlm: str | PathLike[str] | Answerer, device: torch.device | str | None, dtype: torch.dtype | None
) -> Answerer:
    """An object that answers as it is, or the vision-language model of a checkpoint."""
    return VLMAnswerer(vlm, device=device, dtype=dtype) if isinstance(vlm, str | PathLike) else vlm


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
