"""Where the clean latents of a batch come from, and the prompts that go with them."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from .data import Captioned, Order, Preparation, batches_from, choose_caption, load_captioned
from .errors import TrainingError
from .teacher import Teacher

Source = Iterator[Callable[[], tuple[Tensor, dict[str, Tensor]]]]
"""Endless batches; each is drawn when it is called, as clean latents `[B, ...]` and the features of their captions."""


def open_source(
    given: argparse.Namespace, teacher: Teacher, order: Callable[[int], Order], first_batch: int, barrier: Callable
) -> Source:
    """The batches that the options name, from a batch on.

    Args:
        order: of a dataset of so many rows.
        barrier: waits for all processes.

    Raises:
        TrainingError: there is no such data.
    """
    if given.prompts_file is not None:
        prompts = read_prompts(given.prompts_file)
        rows: Any = [Captioned(None, prompt, prompt) for prompt in prompts]
        return teacher_source(given, rows, teacher, order(len(rows)), first_batch)
    rows = load_captioned(given)
    row_order = order(0 if given.streaming else len(rows))
    if given.teacher_samples:
        return teacher_source(given, rows, teacher, row_order, first_batch)
    prepare = Preparation(teacher.resolution, given.center_crop, given.random_flip)
    if not given.cache_latents:
        batches = batches_from(rows, prepare, row_order, first_batch, given.dataloader_num_workers, given.streaming)
        return image_source(batches, teacher)
    cache = LatentCache(given.output_dir / "cache", _identity(given, teacher))
    cache.fill(rows, prepare, teacher, range(row_order.process_index, len(rows), row_order.num_processes))
    barrier()
    files = [Captioned(None, "", str(index)) for index in range(len(rows))]
    batches = batches_from(files, cache, row_order, first_batch, given.dataloader_num_workers, streaming=False)
    return cached_source(batches, teacher)


def read_prompts(file: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        TrainingError: there are none.
    """
    try:
        prompts = [line.strip() for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"--prompts_file {file} cannot be read: {error}") from error
    if not prompts:
        raise TrainingError(f"--prompts_file {file} is empty; write one prompt a line")
    return prompts


def image_source(batches: Iterator[list[tuple[Tensor, str]]], teacher: Teacher) -> Source:
    """Encodes images and captions as they come."""
    for batch in batches:
        images, captions = zip(*batch, strict=True)

        def draw(images: Sequence[Tensor] = images, captions: Sequence[str] = captions) -> Any:
            mean, deviation = teacher.encode_images(torch.stack(images))
            return (mean + deviation * torch.randn_like(mean)).float(), teacher.features(captions)

        yield draw


def teacher_source(given: argparse.Namespace, rows: Any, teacher: Teacher, order: Order, first_batch: int) -> Source:
    """Samples the teacher at the captions of the rows."""
    batches = batches_from(rows, _caption, order, first_batch, given.dataloader_num_workers, given.streaming)
    for captions in batches:

        def draw(captions: Sequence[str] = captions) -> Any:
            generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
            steps = given.teacher_num_inference_steps
            return teacher.sample(captions, steps, generator), teacher.features(captions)

        yield draw


def _caption(row: Captioned, rng: random.Random) -> str:
    return choose_caption(row, rng)


def cached_source(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Source:
    """Reads what a `LatentCache` holds."""
    device = teacher.backbone.pipeline._execution_device
    for batch in batches:
        rows = {name: torch.stack([row[name] for row in batch]) for name in batch[0]}

        def draw(rows: dict[str, Tensor] = rows) -> Any:
            features = {name: row.to(device) for name, row in rows.items()}
            mean, deviation = features.pop("latents.mean"), features.pop("latents.deviation")
            return mean + deviation * torch.randn_like(mean), features

        yield draw


class LatentCache:
    """Latents and features of a dataset in a folder, one file a row.

    Args:
        folder: where they are; what another run left there under another identity is not used.
        identity: what they depend on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder / identity

    def file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.safetensors"

    def fill(
        self, rows: Any, prepare: Preparation, teacher: Teacher, indices: Sequence[int], batch_size: int = 8
    ) -> None:
        """Encodes those of the rows at some indices that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [index for index in indices if not self.file(index).exists()]
        for start in tqdm(range(0, len(missing), batch_size), desc="Encoding", disable=not missing):
            chunk = missing[start : start + batch_size]
            images, captions = zip(*[prepare(rows[i], random.Random(i)) for i in chunk], strict=True)
            mean, deviation = teacher.encode_images(torch.stack(images))
            batch = {
                "latents.mean": mean.float(),
                "latents.deviation": deviation.float(),
                **teacher.features(captions),
            }
            for position, index in enumerate(chunk):
                row = {name: tensor[position].cpu().contiguous().clone() for name, tensor in batch.items()}
                partial = self.file(index).with_suffix(".partial")
                save_file(row, partial)
                os.replace(partial, self.file(index))

    def __call__(self, row: Captioned, rng: random.Random) -> dict[str, Tensor]:
        return load_file(self.file(int(row.name)))


def _identity(given: argparse.Namespace, teacher: Teacher) -> str:
    """A digest of the options that what is encoded depends on."""
    names = (
        "pretrained_model_name_or_path revision variant mixed_precision max_sequence_length dataset_name "
        "dataset_config_name dataset_split train_data_dir image_column caption_column center_crop"
    )
    settings = {name: str(getattr(given, name)) for name in names.split()}
    settings["resolution"] = str(teacher.resolution)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
