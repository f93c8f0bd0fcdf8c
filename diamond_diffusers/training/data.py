"""Captioned images: a folder, a dataset for `datasets`, or the miniature's own world."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision.transforms import functional

from ..miniature.render import render
from ..miniature.training import sample_world
from .arguments import MINIATURE
from .errors import TrainingError

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True)
class Captioned:
    """A captioned image.

    Attributes:
        image: the image; a file; or what `datasets` holds, `{"bytes": ..., "path": ...}`.
        captions: one, or several to choose from.
        name: tells the user which one it is.
    """

    image: Any
    captions: str | Sequence[str]
    name: str


class CaptionedImages(Protocol):
    """Rows that can be told by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Captioned: ...


class ImageFolder:
    """A folder of images whose captions are in `metadata.jsonl`, `metadata.csv` or a `.txt` beside each image.

    Args:
        folder: metadata name an image in `file_name`, relative to it.
        caption_column: of the metadata.

    Raises:
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
        with file.open(newline="") as opened:
            table = list(csv.DictReader(opened)) if file.suffix == ".csv" else [json.loads(line) for line in opened]
        if not table:
            raise TrainingError(f"{file} is empty; give a row with file_name and {caption_column} for each image")
        for number, row in enumerate(table):
            check_columns(str(file), row, "file_name", caption_column, f"row {number} of ")
        return [Captioned(folder / row["file_name"], row[caption_column], row["file_name"]) for row in table]

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
        return [Captioned(image, image.with_suffix(".txt").read_text().strip(), image.name) for image in images]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Captioned:
        return self.rows[index]


class MiniatureWorld:
    """Scenes of the miniature's world, rendered when they are asked for.

    Args:
        num_scenes: the number of different ones.
        seed: of the world.
    """

    def __init__(self, num_scenes: int = 65536, seed: int = 0) -> None:
        self.num_scenes, self.seed = num_scenes, seed

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> Captioned:
        captions, scenes = sample_world(random.Random(f"{self.seed} {index}"), 1)
        return Captioned(functional.to_pil_image(render(scenes)[0]), captions[0].text, f"scene {index}")


class HubDataset:
    """A dataset of `datasets`, local or from the Hub.

    Args:
        dataset: loaded, with a length or streaming.
        image_column, caption_column: of its rows.

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
        self.image_column, self.caption_column = image_column, caption_column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Captioned:
        return self._row(self.dataset[index], index)

    def stream(self, epoch: int) -> Iterator[Captioned]:
        """The rows of an epoch in its order."""
        self.dataset.set_epoch(epoch)
        for index, row in enumerate(self.dataset):
            yield self._row(row, index)

    def _row(self, row: Mapping[str, Any], index: int) -> Captioned:
        check_columns(self.name, row, self.image_column, self.caption_column)
        return Captioned(row[self.image_column], row[self.caption_column], f"row {index} of {self.name}")


def check_columns(name: str, row: Mapping[str, Any], image: str, caption: str, where: str = "") -> None:
    """Raises a `TrainingError` for the first column that a row lacks."""
    for option, column in (("--image_column", image), ("--caption_column", caption)):
        if column not in row or row[column] is None:
            available = ", ".join(map(str, row)) or "none"
            if column == "file_name":
                raise TrainingError(f"{where}{name} has no column 'file_name'; its columns are {available}")
            raise TrainingError(f"{where}{name} has no column {column!r}; set {option} to one of {available}")


def load_captioned(given: argparse.Namespace) -> CaptionedImages:
    """The dataset that the options name.

    Raises:
        TrainingError: it cannot be read, or lacks captions.
    """
    if given.train_data_dir is not None:
        rows: Any = ImageFolder(given.train_data_dir, given.caption_column)
    elif given.dataset_name == MINIATURE:
        rows = MiniatureWorld()
    else:
        return _load_dataset(given)
    if given.max_train_samples is None:
        return rows
    return Subset(rows, range(min(given.max_train_samples, len(rows))))


def _load_dataset(given: argparse.Namespace) -> HubDataset:
    try:
        import datasets
    except ImportError as error:
        raise TrainingError(
            "--dataset_name needs the package datasets; install it with pip install datasets"
        ) from error
    try:
        if Path(given.dataset_name, "state.json").exists():
            dataset = datasets.load_from_disk(given.dataset_name)
        else:
            dataset = datasets.load_dataset(
                given.dataset_name,
                given.dataset_config_name,
                split=given.dataset_split,
                streaming=given.streaming,
                cache_dir=given.cache_dir,
            )
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise TrainingError(f"--dataset_name {given.dataset_name} cannot be loaded: {error}") from error
    if given.streaming:
        if not hasattr(dataset, "set_epoch"):
            dataset = dataset.to_iterable_dataset()
        if given.max_train_samples is not None:
            dataset = dataset.take(given.max_train_samples)
        dataset = dataset.shuffle(seed=given.seed, buffer_size=given.shuffle_buffer_size)
    elif given.max_train_samples is not None:
        dataset = dataset.select(range(min(given.max_train_samples, len(dataset))))
    return HubDataset(dataset, given.dataset_name, given.image_column, given.caption_column)


@dataclass(frozen=True)
class Preparation:
    """How images become tensors.

    Args:
        resolution: of the square images.
        center_crop, random_flip: as the options of these names.
    """

    resolution: int
    center_crop: bool = False
    random_flip: bool = False

    def __call__(self, row: Captioned, rng: random.Random) -> tuple[Tensor, str]:
        """`[3, resolution, resolution]` in [-1, 1], and a caption."""
        image = functional.resize(open_image(row), self.resolution, functional.InterpolationMode.LANCZOS)
        right, bottom = image.width - self.resolution, image.height - self.resolution
        left, top = (right // 2, bottom // 2) if self.center_crop else (rng.randint(0, right), rng.randint(0, bottom))
        image = functional.crop(image, top, left, self.resolution, self.resolution)
        if self.random_flip and rng.random() < 0.5:
            image = functional.hflip(image)
        return functional.to_tensor(image) * 2 - 1, choose_caption(row, rng)


def open_image(row: Captioned) -> Image.Image:
    """The image of a row, in RGB, upright.

    Raises:
        TrainingError: it does not decode.
    """
    image = row.image
    try:
        if isinstance(image, dict):
            image = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, AttributeError) as error:
        raise TrainingError(f"the image of {row.name} does not decode ({error}); remove or replace it") from error


def choose_caption(row: Captioned, rng: random.Random) -> str:
    """The caption of a row, or one of its captions.

    Raises:
        TrainingError: it has none.
    """
    if isinstance(row.captions, str):
        return row.captions
    if not isinstance(row.captions, Sequence) or not row.captions:
        raise TrainingError(f"the caption of {row.name} is {row.captions!r}; it must be a text or a list of texts")
    return rng.choice(list(row.captions))


@dataclass(frozen=True)
class Order:
    """Which rows a process sees in which batch: every epoch a new permutation, the same at every start.

    Args:
        num_rows: of the dataset.
        batch_size: of one process.
        process_index, num_processes: of this process.
        seed: of the permutations.
    """

    num_rows: int
    batch_size: int
    process_index: int = 0
    num_processes: int = 1
    seed: int = 0

    def batches(self, first_batch: int) -> Iterator[list[tuple[int, int]]]:
        """Row and position of each item, batch by batch; positions count all items of all processes."""
        epoch, permutation = -1, torch.empty(0)
        for batch in itertools.count(first_batch):
            start = (batch * self.num_processes + self.process_index) * self.batch_size
            items = []
            for position in range(start, start + self.batch_size):
                if position // self.num_rows != epoch:
                    epoch = position // self.num_rows
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    permutation = torch.randperm(self.num_rows, generator=generator)
                items.append((int(permutation[position % self.num_rows]), position))
            yield items


class _Prepared(Dataset):
    """Rows by `(index, position)`; all randomness of an item follows from the seed and its position."""

    def __init__(self, rows: CaptionedImages, prepare: Any, seed: int) -> None:
        self.rows, self.prepare, self.seed = rows, prepare, seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Any, Any]:
        index, position = item
        return self.prepare(self.rows[index], random.Random(f"{self.seed} {position}"))


class _Streamed(IterableDataset):
    """The part of a streamed dataset that a process sees, from an item on."""

    def __init__(self, rows: HubDataset, prepare: Any, order: Order, first_item: int) -> None:
        self.rows, self.prepare, self.order, self.first_item = rows, prepare, order, first_item

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        everything = (row for epoch in itertools.count() for row in _not_empty(self.rows.stream(epoch), self.rows.name))
        own = itertools.islice(everything, self.order.process_index, None, self.order.num_processes)
        for position, row in enumerate(own):
            if position >= self.first_item:
                seed = f"{self.order.seed} {self.order.process_index} {position}"
                yield self.prepare(row, random.Random(seed))


def _not_empty(rows: Iterator[Captioned], name: str) -> Iterator[Captioned]:
    first = next(rows, None)
    if first is None:
        raise TrainingError(f"{name} is empty")
    return itertools.chain([first], rows)


def batches_from(
    rows: Any, prepare: Any, order: Order, first_batch: int, num_workers: int, streaming: bool
) -> Iterator:
    """Endless batches of prepared rows, from a batch on: lists of what `prepare` returns."""
    if streaming:
        streamed = _Streamed(rows, prepare, order, first_batch * order.batch_size)
        return iter(DataLoader(streamed, batch_size=order.batch_size, collate_fn=list))
    prepared = _Prepared(rows, prepare, order.seed)
    return iter(
        DataLoader(prepared, batch_sampler=order.batches(first_batch), collate_fn=list, num_workers=num_workers)
    )
