"""What a published benchmark is to this package: a rule that judges images of its prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from ..benchmark.prompts import Prompt


@dataclass(frozen=True)
class Verdict:
    """What a suite says of one image.

    Attributes:
        score: from 0 to 1; of suites that only decide, 1 where the image is right and 0 where it is wrong.
        reason: what is wrong or missing, in the suite's own words; empty where nothing is.
        details: scores of the parts, such as questions, by their names.
    """

    score: float
    reason: str = ""
    details: Mapping[str, float] = field(default_factory=dict)


class SuiteJudge(ABC):
    """Judges images of the prompts of one published benchmark by its rules.

    Attributes:
        name: name of the benchmark, such as "geneval".
        source: its publication.
        licence: of its prompts and rules.
    """

    name: str
    source: str
    licence: str

    @abstractmethod
    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict for each image of the prompt in its place.

        Raises:
            ValueError: a prompt lacks the metadata that the rules need.
        """
