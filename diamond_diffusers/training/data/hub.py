"""A dataset of `datasets`, local or from the Hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TrainingError
from .rows import Captioned, check_columns, check_values

if TYPE_CHECKING:
    from ..options.records import DataOptions


class HubDataset:
    """A dataset of `datasets`, local or from the Hub.

    Args:
        dataset: a loaded dataset, with a length or streaming.
        image_column, caption_column: names of its columns.

    Raises:
        TrainingError: it lacks a column.
    """

    def __init__(self, dataset: Any, name: str, image_column: str, caption_column: str) -> None:
        from datasets import Image as ImageFeature

        columns = dataset.column_names
        if columns is not None:
            check_columns(name, dict.fromkeys(columns, ""), image_column, caption_column)
        if isinstance((dataset.features or {}).get(image_column), ImageFeature):
            # Decoded here, where an image that does not decode can be named.
            dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
        self.dataset, self.name = dataset, name
        # As datasets tells its own caches apart.
        self.fingerprint = getattr(dataset, "_fingerprint", "")
        self.image_column, self.caption_column = image_column, caption_column

    @property
    def is_streamed(self) -> bool:
        """Whether the rows are read one after the other, and their number is not known."""
        return hasattr(self.dataset, "set_epoch")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Captioned:
        return self._row(self.dataset[index], index)

    def stream(self, epoch: int) -> Iterator[Captioned]:
        """The rows of an epoch, in the order of the epoch."""
        self.dataset.set_epoch(epoch)
        for index, row in enumerate(self.dataset):
            yield self._row(row, index)

    def _row(self, row: Mapping[str, Any], index: int) -> Captioned:
        check_columns(self.name, row, self.image_column, self.caption_column)
        check_values(f"row {index} of {self.name}", row, self.image_column, self.caption_column)
        return Captioned(row[self.image_column], row[self.caption_column], f"row {index} of {self.name}")


def load_dataset(options: DataOptions, cache_dir: str | None, seed: int, num_skipped: int = 0) -> HubDataset:
    """The dataset that the options name, from the disk or from the Hub; a streamed one is shuffled by the seed.

    Args:
        options, cache_dir, seed: as of `load_captioned`.
        num_skipped: rows of a streamed dataset that are left out, which are its first ones.

    Raises:
        TrainingError: the dataset cannot be loaded, or has no such split.
    """
    dataset = _opened(options, cache_dir)
    if options.streaming:
        if num_skipped:
            dataset = dataset.skip(num_skipped)
        if options.max_train_samples is not None:
            dataset = dataset.take(options.max_train_samples)
        dataset = dataset.shuffle(seed=seed, buffer_size=options.shuffle_buffer_size)
    return _with_columns(dataset, options)


def first_rows(options: DataOptions, cache_dir: str | None, count: int) -> list[Captioned]:
    """The first rows of a streamed dataset; arguments and errors as of `load_dataset`."""
    return list(_with_columns(_opened(options, cache_dir).take(count), options).stream(0))


def _with_columns(dataset: Any, options: DataOptions) -> HubDataset:
    assert options.dataset_name is not None, "the data is a dataset by name"
    return HubDataset(dataset, options.dataset_name, options.image_column, options.caption_column)


def _opened(options: DataOptions, cache_dir: str | None) -> Any:
    """The dataset as `datasets` opens it, streamed if the options say so."""
    assert options.dataset_name is not None, "the data is a dataset by name"
    try:
        import datasets
    except ImportError as error:
        raise TrainingError(
            "--dataset_name needs the package datasets; install it with pip install datasets"
        ) from error
    try:
        if (
            Path(options.dataset_name, "state.json").exists()
            or Path(options.dataset_name, "dataset_dict.json").exists()
        ):
            dataset = datasets.load_from_disk(options.dataset_name)
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[options.dataset_split]
        else:
            dataset = datasets.load_dataset(
                options.dataset_name,
                options.dataset_config_name,
                split=options.dataset_split,
                streaming=options.streaming,
                cache_dir=cache_dir,
            )
    except KeyError as error:
        raise TrainingError(
            f"{options.dataset_name} has no split {options.dataset_split!r}; set --dataset_split to one of "
            f"{', '.join(dataset)}"
        ) from error
    except IndexError as error:
        # What datasets makes of a saved dataset without rows.
        raise TrainingError(f"{options.dataset_name} is empty; name a dataset with rows") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"--dataset_name {options.dataset_name} cannot be loaded: {reason}") from error
    if options.streaming and not hasattr(dataset, "set_epoch"):
        return dataset.to_iterable_dataset()
    return dataset
