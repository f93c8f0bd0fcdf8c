"""Images that are to be judged, in sets that are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..benchmark.prompts import Prompt


@dataclass(frozen=True)
class JudgedImage:
    """An image that is to be judged.

    Attributes:
        path: of its file.
        name: path within its folder, with slashes.
        prompt: what it was drawn for.
        figures: what is known of it already: the `reward` that its method followed, and its `budget used`.
    """

    path: Path
    name: str
    prompt: Prompt
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageSet:
    """The images of one method or model, which the tables compare with other sets."""

    name: str
    images: tuple[JudgedImage, ...]
