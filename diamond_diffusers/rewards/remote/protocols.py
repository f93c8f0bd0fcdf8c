"""The ways of speaking to a service: what is sent, and how scores are read from the answer."""

from __future__ import annotations

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ...core.wording import shown
from .registry import PROTOCOLS

LARGEST = 3.4028234663852886e38
"""Of float32, in which scores are kept."""


class AnswerError(ValueError):
    """An answer of a service that holds no scores.

    Args:
        found: what it holds, in the words of "The service answered ...".
        remedy: what the user does about it, in the imperative.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.found, self.remedy = found, remedy


class RemoteProtocol(ABC):
    """How a `RemoteReward` speaks to a service. Subclasses define `body` and `scores`, as a dataclass does best.

    Attributes:
        path: what is appended to the reward's URL.
        max_images: the most images of a request; None for any number.
        reads_prompts: whether prompts are sent.

    Example:
        >>> from diamond_diffusers.rewards.remote import RemoteProtocol
        >>> class Batch(RemoteProtocol):
        ...     def body(self, images, prompts):
        ...         return {"texts": list(prompts), "files": [image.hex() for image in images]}
        ...     def scores(self, answer, count):
        ...         return answer["result"]
    """

    path: str = ""
    max_images: int | None = None
    reads_prompts: bool = True

    @property
    def identity(self) -> str:
        """All on which scores depend besides image and prompt, so that a cache tells judges apart."""
        return f"{type(self).__module__}.{type(self).__qualname__}({sorted(vars(self).items())!r})"

    @abstractmethod
    def body(self, images: Sequence[bytes], prompts: Sequence[str]) -> Any:
        """What is sent, as JSON.

        Args:
            images: PNG files, 8-bit RGB.
            prompts: one for each.
        """

    @abstractmethod
    def scores(self, answer: Any, count: int) -> Sequence[Any]:
        """The scores in an answer, which the reward then checks: so many finite numbers.

        Args:
            answer: as it was read from JSON.
            count: of the images that were sent.

        Raises:
            AnswerError: there are none.
        """

    def tokens(self, answer: Any) -> tuple[int, int]:
        """The input and output tokens of a request, as its answer tells; by default those of its `usage`."""
        usage = answer.get("usage") if isinstance(answer, Mapping) else None
        told = usage if isinstance(usage, Mapping) else {}
        return _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))


@PROTOCOLS.register("scores")
@dataclass(frozen=True)
class ScoreService(RemoteProtocol):
    """A service that gets images and prompts, and returns numbers.

    The request is a POST of `{"images": [...], "prompts": [...]}`: PNG files in base64, and as many texts. The answer
    is `[0.5, ...]` or `{"scores": [0.5, ...]}`, a number for each image, in their order.

    Example:
        >>> ScoreService().body([b"PNG"], ["a red star"])
        {'images': ['UE5H'], 'prompts': ['a red star']}
    """

    KEY: ClassVar[str] = "scores"

    def body(self, images: Sequence[bytes], prompts: Sequence[str]) -> dict[str, list[str]]:
        """Images in base64, and prompts."""
        return {"images": [base64.b64encode(image).decode() for image in images], "prompts": list(prompts)}

    def scores(self, answer: Any, count: int) -> Sequence[Any]:
        """The list of numbers, or that under "scores"."""
        found = answer.get(self.KEY) if isinstance(answer, Mapping) else answer
        if isinstance(found, list):
            return found
        if isinstance(answer, Mapping):
            keys = f"with the entries {', '.join(map(repr, answer)) or 'of nothing'}"
            raise AnswerError(
                f"an object {keys:.120}, and no list under '{self.KEY}'", f'let it answer {{"{self.KEY}": [...]}}'
            )
        raise AnswerError(f"{shown(answer)}, which is no list", "let it answer a list with a number for each image")


def _count(told: Any) -> int:
    return told if isinstance(told, int) and 0 <= told < 2**63 else 0


def checked_scores(scores: Sequence[Any], count: int) -> list[float]:
    """The scores of `count` images as numbers.

    Raises:
        AnswerError: there is another number of them, or one is no finite number.
    """
    if len(scores) != count:
        raise AnswerError(
            f"{len(scores)} scores for {count} images", "let it answer one score for each image, in order"
        )
    for index, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise AnswerError(
                f"{shown(score)} for image {index}, which is no number", "let it answer numbers, such as 0.5"
            )
        # NaN is not within it.
        if not abs(score) <= LARGEST:
            found = f"{score}" if isinstance(score, float) and not math.isfinite(score) else "a number beyond float32"
            raise AnswerError(f"{found} for image {index}", "let it answer finite numbers")
    return [float(score) for score in scores]
