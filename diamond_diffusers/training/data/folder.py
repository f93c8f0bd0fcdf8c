"""A folder of captioned images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...files.foreign import read_text
from ...files.foreign_tables import read_csv, read_json_lines
from ...files.json_forms import fitted, shown
from ..errors import TrainingError
from .rows import Captioned, check_columns, check_values

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class ImageFolder:
    """A folder of images whose captions are in `metadata.jsonl`, `metadata.csv` or a `.txt` beside each image.

    Args:
        folder: the folder; the metadata name each image in `file_name`, relative to it.
        caption_column: column of the metadata that holds the captions.

    Raises:
        ForeignFileError: the metadata or a caption cannot be read.
        TrainingError: there are no images, or no captions.
    """

    def __init__(self, folder: Path, caption_column: str = "text") -> None:
        if not folder.is_dir():
            raise TrainingError(f"--train_data_dir {folder} is no folder")
        self.rows = self._from_metadata(folder, caption_column) or self._from_text_files(folder)

    @staticmethod
    def _from_metadata(folder: Path, caption_column: str) -> list[Captioned]:
        file = next((folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).exists()), None)
        if file is None:
            return []
        table = _read_table(file)
        if not table:
            raise TrainingError(f"{file} is empty; give a row with file_name and {caption_column} for each image")
        for place, row in table:
            check_columns(place, row, "file_name", caption_column)
            check_values(place, row, "file_name", caption_column)
            remedy = "write file names and captions as texts"
            fitted(row["file_name"], str, f"file_name in {place}", remedy)
            fitted(row[caption_column], str | list[str], f"{caption_column} in {place}", remedy)
            # Not the method of the path, which raises an error for a name that no file can have.
            if not os.path.isfile(folder / row["file_name"]):
                raise TrainingError(f"{place} names {shown(row['file_name'])}, which does not exist; remove the line")
        return [Captioned(folder / row["file_name"], row[caption_column], row["file_name"]) for _, row in table]

    @staticmethod
    def _from_text_files(folder: Path) -> list[Captioned]:
        images = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _IMAGES)
        if not images:
            raise TrainingError(f"--train_data_dir {folder} holds no images ({', '.join(_IMAGES)})")
        for image in images:
            if not image.with_suffix(".txt").exists():
                raise TrainingError(
                    f"{image} has no caption; write it to {image.with_suffix('.txt').name}, or give metadata.jsonl"
                )
        return [Captioned(image, read_text(image.with_suffix(".txt")).strip(), image.name) for image in images]

    @property
    def fingerprint(self) -> str:
        """A text that changes if a file or a caption changes."""
        files = [(row.name, row.image.stat(), row.captions) for row in self.rows]
        return str([(name, status.st_size, status.st_mtime_ns, captions) for name, status, captions in files])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Captioned:
        return self.rows[index]


def _read_table(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows of `metadata.csv` or `metadata.jsonl`, each with its place in the file."""
    if file.suffix == ".csv":
        return list(read_csv(file)[1])
    remedy = "write one row a line, as a JSON object"
    return [(place, fitted(row, dict, place, remedy)) for _, place, row in read_json_lines(file, remedy)]
