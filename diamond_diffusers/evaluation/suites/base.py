"""What a published benchmark is to this package: a rule that judges images of its prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from ...files.json_forms import fitted
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

    A subclass that is registered is made by `diamond-diffusers evaluate`, which hands over those of the arguments
    `vlm`, `detector`, `clip`, `device` and `dtype` that the user has named and that its constructor has.

    Attributes:
        name: name of the benchmark, such as "geneval".
        source: its publication.
        licence: of its prompts and rules.
        prompts: the name of its file of prompts in `known_prompts`; empty where it has none of its own.
        needs: fields that the metadata of a prompt must have, none of which may be empty.
        form: a `TypedDict` that the metadata have to fit; None where any do.
        overall: what the score of a set of images is: the mean over its prompts, or over its categories.
    """

    name: str
    source: str
    licence: str
    prompts: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    form: ClassVar[Any] = None
    overall: ClassVar[Literal["prompts", "categories"]] = "prompts"

    @classmethod
    def check(cls, prompts: Sequence[Prompt]) -> None:
        """Checks prompts before any model is loaded.

        Raises:
            ValueError: a prompt lacks the metadata that the rules need, or they have another form.
        """
        remedy = f"give --prompts {cls.prompts}" if cls.prompts else "give prompts with metadata"
        for prompt in prompts:
            lacking = next((field for field in cls.needs if not prompt.metadata.get(field)), None)
            if lacking is not None:
                raise ValueError(
                    f"the prompt {prompt.text[:60]!r} has no {lacking!r} in its metadata, which suite {cls.name!r} "
                    f"needs; {remedy} or the suite's own file"
                )
            if cls.form is not None:
                of_prompt = f"the metadata of the prompt {prompt.text[:60]!r}"
                fitted(dict(prompt.metadata), cls.form, of_prompt, f"{remedy} or the suite's own file")

    @abstractmethod
    def judge(self, images: Sequence[Image], prompts: Sequence[Prompt]) -> list[Verdict]:
        """One verdict for each image of the prompt in its place.

        Raises:
            ValueError: a prompt lacks the metadata that the rules need.
        """

    @classmethod
    def parts(cls, prompt: Prompt, verdict: Verdict) -> Mapping[str, Sequence[float]]:
        """The scores that an image gives to further figures of the suite, such as those of kinds of questions.

        A figure is the mean of all the scores that the images give to it.
        """
        return {}
