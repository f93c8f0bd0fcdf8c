"""Captioned images, and the checks that all sources of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch.utils.data import Subset

from ..errors import TrainingError


@dataclass(frozen=True)
class Captioned:
    """A captioned image.

    Attributes:
        image: the image, a file, or the form of `datasets`, `{"bytes": ..., "path": ...}`.
        captions: one caption, or several to choose from.
        name: name of the row, for messages.
    """

    image: Any
    captions: str | Sequence[str]
    name: str


class CaptionedImages(Protocol):
    """Rows that are read by their number."""

    fingerprint: str
    """Changes where the rows do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Captioned: ...


class FirstRows(Subset[Captioned]):
    """The first rows of a dataset."""

    def __init__(self, rows: CaptionedImages, count: int) -> None:
        super().__init__(rows, range(min(count, len(rows))))  # type: ignore[arg-type]
        self.fingerprint = rows.fingerprint


def fingerprint(rows: CaptionedImages | Sequence[Captioned]) -> str:
    """A text that changes where rows do; prompts without images are told by themselves."""
    if isinstance(rows, Sequence):
        return str([row.captions for row in rows])
    return rows.fingerprint


def check_columns(name: str, row: Mapping[str, Any], image: str, caption: str) -> None:
    """Raises a `TrainingError` for the first column that a row lacks."""
    for option, column in (("--image_column", image), ("--caption_column", caption)):
        if column not in row:
            available = " ".join(", ".join(map(str, row)).split()) or "none"
            if column == "file_name":
                raise TrainingError(f"{name} has no column 'file_name'; its columns are {available}")
            raise TrainingError(f"{name} has no column {column!r}; set {option} to one of {available}")


def check_values(row_name: str, row: Mapping[str, Any], image: str, caption: str) -> None:
    """Raises a `TrainingError` if a row has no image or no caption."""
    for kind, column in (("image", image), ("caption", caption)):
        if row[column] is None:
            raise TrainingError(f"{row_name} has no {kind} in column {column!r}; give it one, or remove the row")
