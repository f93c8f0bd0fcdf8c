"""Loads the rows that the options name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...files.foreign import read_lines
from ..errors import TrainingError
from ..options.records import MINIATURE
from .folder import ImageFolder
from .hub import HubDataset, load_dataset
from .miniature import MiniatureWorld
from .rows import Captioned, CaptionedImages, FirstRows

if TYPE_CHECKING:
    from pathlib import Path

    from ..options.records import DataOptions


def load_rows(options: DataOptions, cache_dir: str | None = None, seed: int = 0, num_skipped: int = 0) -> Any:
    """The prompts or the captioned images that the options name; arguments as for `load_captioned`.

    Raises:
        ForeignFileError: one of their files cannot be read.
        TrainingError: there are no rows.
    """
    if options.prompts_file is not None:
        return [Captioned(None, prompt, prompt) for prompt in read_prompts(options.prompts_file)]
    return load_captioned(options, cache_dir, seed, num_skipped)


def read_prompts(file: Path) -> list[str]:
    """The prompts of a file: its lines that are not empty.

    Raises:
        ForeignFileError: the file cannot be read.
        TrainingError: the file has no prompts.
    """
    prompts = [line.strip() for _, line in read_lines(file)]
    if not prompts:
        raise TrainingError(f"--prompts_file {file} is empty; write one prompt a line")
    return prompts


def load_captioned(
    options: DataOptions, cache_dir: str | None = None, seed: int = 0, num_skipped: int = 0
) -> CaptionedImages | HubDataset:
    """The dataset or folder that the options name.

    Args:
        options: options of a dataset or a folder.
        cache_dir: folder for downloads.
        seed: seed by which a streamed dataset is shuffled.
        num_skipped: first rows of a streamed dataset that are left out.

    Raises:
        ForeignFileError: a file of the folder cannot be read.
        TrainingError: the dataset cannot be read, or lacks rows or captions.
    """
    if options.train_data_dir is not None:
        rows: Any = ImageFolder(options.train_data_dir, options.caption_column)
    elif options.dataset_name == MINIATURE:
        rows = MiniatureWorld()
    else:
        rows = load_dataset(options, cache_dir, seed, num_skipped)
    if options.streaming:
        return rows
    if len(rows) == 0:
        raise TrainingError(f"{options.dataset_name} is empty; name a dataset with rows")
    if not any(_has_caption(rows[index].captions) for index in range(len(rows))):
        raise TrainingError(
            f"all captions of {options.train_data_dir or options.dataset_name} are empty; name another column with "
            "--caption_column, or write captions"
        )
    if options.max_train_samples is None:
        return rows
    return FirstRows(rows, options.max_train_samples)


def _has_caption(captions: Any) -> bool:
    return bool(captions.strip() if isinstance(captions, str) else captions)
