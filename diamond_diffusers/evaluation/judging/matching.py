"""Which prompt of a file an image was drawn for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..benchmark.prompts import Prompt
from .images import JudgedImage


def match_by_text(images: Sequence[JudgedImage], prompts: Sequence[Prompt]) -> list[JudgedImage]:
    """The images, each with the prompt of its text; of several such, with that of its number.

    Raises:
        ValueError: there is no such prompt.
    """
    by_text: dict[str, dict[int, Prompt]] = {}
    for prompt in prompts:
        by_text.setdefault(prompt.text, {})[prompt.index] = prompt
    matched = []
    for image in images:
        found = by_text.get(image.prompt.text.strip())
        if found is None:
            raise ValueError(
                f"'{image.path}' was drawn for {image.prompt.text[:60]!r}, which --prompts does not hold; give the "
                "prompts of these images"
            )
        matched.append(replace(image, prompt=found.get(image.prompt.index, next(iter(found.values())))))
    return matched


def match_by_name(files: Sequence[Path], prompts: Sequence[Prompt]) -> list[tuple[Path, Prompt]]:
    """Image files, each with the prompt that it is named after.

    A name is that of the prompt's item (as of DPG-Bench), its number (as of UniGenBench), or its text (as of
    T2I-CompBench), perhaps with `_` and the number of the image after it.

    Raises:
        ValueError: there is no such prompt.
    """
    names: dict[str, Prompt] = {}
    for prompt in prompts:
        for name in (prompt.metadata.get("item_id"), str(prompt.index), prompt.text):
            if name:
                names.setdefault(_composed(name), prompt)
    matched = []
    for file in files:
        stem = _composed(file.stem)
        whole, _, number = stem.rpartition("_")
        found = names.get(stem) or (names.get(whole) if number.isdecimal() else None) or _by_number(file, prompts)
        if found is None:
            raise ValueError(
                f"'{file}' is named after no prompt of --prompts; name it after the number, the item or the text of "
                "one, such as 3_0.png, or put metadata.jsonl beside the images, with file_name and prompt of each"
            )
        matched.append((file, found))
    return matched


def _by_number(file: Path, prompts: Sequence[Prompt]) -> Prompt | None:
    """The prompt whose number a name begins with, perhaps after zeros."""
    first, _, number = file.stem.partition("_")
    if not first.isdecimal() or not (number == "" or number.isdecimal()):
        return None
    return next((prompt for prompt in prompts if prompt.index == int(first)), None)


def _composed(name: str) -> str:
    """A name with accents on their letters: some systems keep file names with accents after them."""
    return unicodedata.normalize("NFC", name)
