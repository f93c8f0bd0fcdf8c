"""Captioned images: a folder, a dataset for `datasets`, or the miniature's own world."""

from __future__ import annotations

import argparse
import io
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms import functional

from ..files.foreign import read_text
from ..files.foreign_images import UNDECODABLE, why_undecodable
from ..files.foreign_tables import read_csv, read_json_lines
from ..files.json_forms import fitted, shown
from ..miniature.render import render, sample_world
from .arguments import MINIATURE
from .errors import TrainingError

MAX_ASPECT_RATIO = 100
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
                raise TrainingError(f"{place} names {shown(row['file_name'])}, which is not there; remove the line")
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
        """Changes where a file or a caption does."""
        files = [(row.name, row.image.stat(), row.captions) for row in self.rows]
        return str([(name, status.st_size, status.st_mtime_ns, captions) for name, status, captions in files])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Captioned:
        return self.rows[index]


def _read_table(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rows of `metadata.csv` or `metadata.jsonl`, each with the place that it is from."""
    if file.suffix == ".csv":
        return list(read_csv(file)[1])
    remedy = "write one row a line, as a JSON object"
    return [(place, fitted(row, dict, place, remedy)) for _, place, row in read_json_lines(file, remedy)]


class MiniatureWorld:
    """Scenes of the miniature's world, rendered when they are asked for.

    Args:
        num_scenes: the number of different ones.
        seed: of the world.
    """

    def __init__(self, num_scenes: int = 65536, seed: int = 0) -> None:
        self.num_scenes, self.seed = num_scenes, seed
        self.fingerprint = f"miniature {seed}"

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
        # As datasets tells its own caches apart.
        self.fingerprint = getattr(dataset, "_fingerprint", "")
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
        check_values(f"row {index} of {self.name}", row, self.image_column, self.caption_column)
        return Captioned(row[self.image_column], row[self.caption_column], f"row {index} of {self.name}")


def check_columns(name: str, row: Mapping[str, Any], image: str, caption: str) -> None:
    """Raises a `TrainingError` for the first column that a row lacks."""
    for option, column in (("--image_column", image), ("--caption_column", caption)):
        if column not in row:
            available = " ".join(", ".join(map(str, row)).split()) or "none"
            if column == "file_name":
                raise TrainingError(f"{name} has no column 'file_name'; its columns are {available}")
            raise TrainingError(f"{name} has no column {column!r}; set {option} to one of {available}")


def check_values(row_name: str, row: Mapping[str, Any], image: str, caption: str) -> None:
    """Raises a `TrainingError` for an image or a caption that a row has none of."""
    for kind, column in (("image", image), ("caption", caption)):
        if row[column] is None:
            raise TrainingError(f"{row_name} has no {kind} in column {column!r}; give it one, or remove the row")


def load_captioned(given: argparse.Namespace) -> CaptionedImages:
    """The dataset that the options name.

    Raises:
        TrainingError: it cannot be read, or lacks rows or captions.
    """
    if given.train_data_dir is not None:
        rows: Any = ImageFolder(given.train_data_dir, given.caption_column)
    elif given.dataset_name == MINIATURE:
        rows = MiniatureWorld()
    else:
        rows = _load_dataset(given)
    if given.streaming:
        return rows
    if len(rows) == 0:
        raise TrainingError(f"{given.dataset_name} is empty; name a dataset with rows")
    if not any(_has_caption(rows[index].captions) for index in range(len(rows))):
        raise TrainingError(
            f"all captions of {given.train_data_dir or given.dataset_name} are empty; name another column with "
            "--caption_column, or write captions"
        )
    if given.max_train_samples is None:
        return rows
    return FirstRows(rows, given.max_train_samples)


class FirstRows(Subset):
    """The first rows of a dataset."""

    def __init__(self, rows: CaptionedImages, count: int) -> None:
        super().__init__(rows, range(min(count, len(rows))))
        self.fingerprint = rows.fingerprint


def _has_caption(captions: Any) -> bool:
    return bool(captions.strip() if isinstance(captions, str) else captions)


def _load_dataset(given: argparse.Namespace) -> HubDataset:
    try:
        import datasets
    except ImportError as error:
        raise TrainingError(
            "--dataset_name needs the package datasets; install it with pip install datasets"
        ) from error
    try:
        if Path(given.dataset_name, "state.json").exists() or Path(given.dataset_name, "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(given.dataset_name)
            if isinstance(dataset, datasets.DatasetDict):
                dataset = dataset[given.dataset_split]
        else:
            dataset = datasets.load_dataset(
                given.dataset_name,
                given.dataset_config_name,
                split=given.dataset_split,
                streaming=given.streaming,
                cache_dir=given.cache_dir,
            )
    except KeyError as error:
        raise TrainingError(
            f"{given.dataset_name} has no split {given.dataset_split!r}; set --dataset_split to one of "
            f"{', '.join(dataset)}"
        ) from error
    except IndexError as error:
        # What datasets makes of a saved dataset without rows.
        raise TrainingError(f"{given.dataset_name} is empty; name a dataset with rows") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise TrainingError(f"--dataset_name {given.dataset_name} cannot be loaded: {reason}") from error
    if given.streaming:
        if not hasattr(dataset, "set_epoch"):
            dataset = dataset.to_iterable_dataset()
        if given.max_train_samples is not None:
            dataset = dataset.take(given.max_train_samples)
        dataset = dataset.shuffle(seed=given.seed, buffer_size=given.shuffle_buffer_size)
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
        """`[3, resolution, resolution]` in [-1, 1], and a caption.

        Raises:
            TrainingError: the image does not decode, or is a stripe; or there is no caption.
        """
        image = open_image(row)
        longer, shorter = max(image.size), min(image.size)
        if longer / shorter > MAX_ASPECT_RATIO:
            raise TrainingError(
                f"the image of {row.name} is {image.width} by {image.height} pixels, too long for a square; crop or "
                "remove it"
            )
        image = functional.resize(image, self.resolution, functional.InterpolationMode.LANCZOS)
        right, bottom = image.width - self.resolution, image.height - self.resolution
        left, top = (right // 2, bottom // 2) if self.center_crop else (rng.randint(0, right), rng.randint(0, bottom))
        image = functional.crop(image, top, left, self.resolution, self.resolution)
        if self.random_flip and rng.random() < 0.5:
            image = functional.hflip(image)
        return functional.to_tensor(image) * 2 - 1, choose_caption(row, rng)


def open_image(row: Captioned) -> Image.Image:
    """The image of a row, in RGB, upright, on white where it is transparent.

    Raises:
        TrainingError: it does not decode.
    """
    image = row.image
    try:
        if isinstance(image, dict):
            image = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
        if not isinstance(image, Image.Image):
            image = Image.open(image)
        return _opaque(ImageOps.exif_transpose(image))
    except UNDECODABLE as error:
        reason = why_undecodable(error)
        raise TrainingError(f"the image of {row.name} does not decode ({reason}); remove or replace it") from error


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would cut off what is above 255 of 16 bits.
        return Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def choose_caption(row: Captioned, rng: random.Random) -> str:
    """The caption of a row, or one of its captions.

    Raises:
        TrainingError: it has none.
    """
    if isinstance(row.captions, str):
        return row.captions
    texts = isinstance(row.captions, Sequence) and all(isinstance(caption, str) for caption in row.captions)
    if not texts or not row.captions:
        raise TrainingError(f"the caption of {row.name} is {row.captions!r}; it must be a text or a list of texts")
    return rng.choice(list(row.captions))
