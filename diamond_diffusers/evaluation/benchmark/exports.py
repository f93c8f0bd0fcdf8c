"""Copies a comparison's images to folders that the programs of other benchmarks read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..files import copy_file, write_bytes
from .compare import method_folder
from .plan import Plan
from .prompts import Prompt
from .records import Record, image_path


def export(
    name: str, plan: Plan, records: Mapping[str, Sequence[Record]], prompts: Sequence[Prompt], folder: Path
) -> None:
    """Copies the images of every method to `exports/<name>/<method>/` of the comparison's folder.

    Args:
        name: name of a format in `EXPORTS`.
        records: the records of each method of the plan.
        prompts: the prompts of the records.
        folder: folder of the comparison.

    Raises:
        ValueError: the format is unknown.
    """
    check_export(name)
    of_index = {prompt.index: prompt for prompt in prompts}
    for method in plan.methods:
        source, target = method_folder(folder, method), folder / "exports" / name / method.label
        for record in records[method.label]:
            EXPORTS[name](of_index[record.index], record, image_path(source, record.key), target)


def check_export(name: str) -> None:
    """Raises a `ValueError` for a format that is unknown."""
    if name not in EXPORTS:
        raise ValueError(f"export is {name!r}; choose one of {', '.join(EXPORTS)}")


def _geneval(prompt: Prompt, record: Record, image: Path, target: Path) -> None:
    """One folder for each prompt, with its line of `evaluation_metadata.jsonl` and its samples (arXiv 2310.11513)."""
    folder = target / f"{record.index:05d}"
    metadata = prompt.metadata or {"tag": prompt.category, "prompt": prompt.text}
    write_bytes(folder / "metadata.jsonl", (json.dumps(dict(metadata)) + "\n").encode())
    copy_file(image, folder / "samples" / f"{record.image:04d}.png")


def _unigenbench(prompt: Prompt, record: Record, image: Path, target: Path) -> None:
    """All images in one folder, named by prompt and image (arXiv 2510.18701)."""
    copy_file(image, target / f"{record.index}_{record.image}.png")


EXPORTS: dict[str, Callable[[Prompt, Record, Path, Path], None]] = {"geneval": _geneval, "unigenbench": _unigenbench}
