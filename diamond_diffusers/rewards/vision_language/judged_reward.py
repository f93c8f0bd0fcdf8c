"""The base of rewards that ask a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from ..base import Reward
from ..output import RewardOutput
from .answers import Answer
from .judge import CHECKPOINT, Judge, JudgeOptions, VisionLanguageJudge

_parts: ContextVar[dict[str, list[Tensor]] | None] = ContextVar("parts", default=None)
"""What the scores of an evaluation are made of, so far."""


class JudgedReward(Reward):
    """A reward that asks a judge about its images. Subclasses define `score`.

    Args:
        judge: whom it asks: any `Judge`, or the checkpoint of a `VisionLanguageJudge`. Rewards may share one.
        default_name: name under which the scores are reported.
        options: of the judge, where it is made here; and `name`, in the place of the default.

    Raises:
        TypeError: options are given beside a judge.
    """

    licence = "that of the checkpoint (Qwen2.5-VL-7B: Apache-2.0)"
    size = "16.6 GB"
    hub_files = ((CHECKPOINT, "config.json"),)

    def __init__(self, judge: str | PathLike[str] | Judge, default_name: str, **options: Unpack[JudgeOptions]) -> None:
        self.name = options.setdefault("name", default_name)
        if isinstance(judge, str | PathLike):
            judge = VisionLanguageJudge(judge, **options)
        elif further := [option for option in options if option != "name"]:
            raise TypeError(
                f"Reward '{self.name}' got a judge and {', '.join(further)}; give these where the judge is made."
            )
        self.judge = judge
        self.differentiable = judge.differentiable

    def evaluate(self, images: Tensor, prompts: Sequence[str], **context: Tensor | float) -> RewardOutput:
        """The checked scores of a batch, and what they are made of. See `Reward.evaluate`."""
        with _noted() as parts:
            output = super().evaluate(images, prompts, **context)
        noted = {name: torch.cat(scores).to(images.device, torch.float32) for name, scores in parts.items()}
        return RewardOutput(output.total, output.terms | noted)

    def note(self, part: str, scores: Tensor) -> None:
        """Reports scores `[B]` of which those of this reward are made, as the term `name.part`."""
        parts = _parts.get()
        if parts is not None:
            parts.setdefault(f"{self.name}.{part}", []).append(scores.detach())

    def check_exclusive(self, answers: Sequence[Answer]) -> None:
        """Checks that no reply can begin with two of these answers, if the judge can tell by a method of this name.

        Raises:
            ValueError: one can.
        """
        if hasattr(self.judge, "check_exclusive"):
            self.judge.check_exclusive(answers)

    def check_questions(self, questions: Sequence[str]) -> None:
        """Checks that questions can be asked, if the judge can tell by a method of this name.

        Raises:
            ValueError: one cannot.
        """
        if hasattr(self.judge, "check_questions"):
            self.judge.check_questions(questions)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the judge, in place, if it can be; returns the reward."""
        if hasattr(self.judge, "to"):
            self.judge.to(device=device, dtype=dtype)
        return self

    def compile(self, **options: Any) -> Self:
        """Compiles the judge's model, in place, if it has one; returns the reward."""
        if hasattr(self.judge, "compile"):
            self.judge.compile(**options)
        return self


@contextmanager
def _noted() -> Iterator[dict[str, list[Tensor]]]:
    parts: dict[str, list[Tensor]] = {}
    token = _parts.set(parts)
    try:
        yield parts
    finally:
        _parts.reset(token)
