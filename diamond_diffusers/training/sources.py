"""Where the clean latents of a batch come from, and the prompts that go with them."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from ..core.glass import inner_times
from ..files.foreign import read_lines
from ..files.output import writing
from ..files.staging import write_safetensors
from .arguments import TRAJECTORIES
from .batches import Order, batches_from
from .data import Captioned, Preparation, choose_caption, load_captioned
from .errors import TrainingError
from .teacher import Teacher
from .trajectories import INNER_STEPS, Trajectories

Source = Iterator[Callable[[], tuple[Tensor | Trajectories, dict[str, Tensor]]]]
"""Endless batches; each is drawn when it is called, as what is learnt from, clean latents `[B, ...]` or trajectories,
and the features of their captions."""


def load_rows(given: argparse.Namespace) -> Any:
    """The prompts or the captioned images that the options name.

    Raises:
        ForeignFileError: a file of them cannot be read.
        TrainingError: there are none.
    """
    if given.prompts_file is not None:
        return [Captioned(None, prompt, prompt) for prompt in read_prompts(given.prompts_file)]
    return load_captioned(given)


def open_source(
    given: argparse.Namespace,
    rows: Any,
    teacher: Teacher,
    order: Callable[[int], Order],
    first_batch: int,
    barrier: Callable,
    evaluate: Callable,
) -> Source:
    """The batches of rows, from a batch on: of what the loss that the options name learns from.

    Args are those of `open_rows`, and of `with_trajectories`.
    """
    source = open_rows(given, rows, teacher, order, first_batch, barrier)
    if given.loss == TRAJECTORIES and not given.cache_trajectories:
        return with_trajectories(source, teacher, evaluate)
    return source


def open_rows(
    given: argparse.Namespace,
    rows: Any,
    teacher: Teacher,
    order: Callable[[int], Order],
    first_batch: int,
    barrier: Callable,
) -> Source:
    """The batches of clean latents of rows, from a batch on; or trajectories, where they are kept.

    Args:
        rows: of `load_rows`.
        order: of a dataset of so many rows.
        barrier: waits for all processes.
    """
    row_order = order(0 if given.streaming else len(rows))
    if given.teacher_samples or given.prompts_file is not None:
        return teacher_source(given, rows, teacher, row_order, first_batch)
    prepare = Preparation(teacher.resolution, given.center_crop, given.random_flip)
    if given.cache_trajectories:
        encode, read = trajectory_encoder(rows, prepare, teacher), cached_trajectories
    elif given.cache_latents:
        encode, read = latent_encoder(rows, prepare, teacher), cached_latents
    else:
        batches = batches_from(rows, prepare, row_order, first_batch, given.dataloader_num_workers, given.streaming)
        return image_source(batches, teacher)
    cache = RowCache(given.output_dir / "cache", _identity(given, rows, teacher))
    cache.fill(len(rows), encode, row_order.process_index, row_order.num_processes)
    barrier()
    files = [Captioned(None, "", str(index)) for index in range(len(rows))]
    batches = batches_from(files, cache, row_order, first_batch, given.dataloader_num_workers, streaming=False)
    return read(batches, teacher)


def read_prompts(file: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        ForeignFileError: it cannot be read.
        TrainingError: there are none.
    """
    prompts = [line.strip() for _, line in read_lines(file)]
    if not prompts:
        raise TrainingError(f"--prompts_file {file} is empty; write one prompt a line")
    return prompts


def image_source(batches: Iterator[list[tuple[Tensor, str]]], teacher: Teacher) -> Source:
    """Encodes images and captions as they come."""
    for batch in batches:
        images, captions = zip(*batch, strict=True)

        def draw(images: Sequence[Tensor] = images, captions: Sequence[str] = captions) -> Any:
            mean, deviation = teacher.family.encode_images(torch.stack(images))
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


def with_trajectories(source: Source, teacher: Teacher, evaluate: Callable) -> Source:
    """Runs the teacher's inner flow from the clean latents of a source.

    Args:
        evaluate: the `DistilledModule`, through which a network has to be evaluated that is distributed.
    """
    for draw_latents in source:

        def draw(draw_latents: Callable = draw_latents) -> Any:
            z, features = draw_latents()
            with torch.no_grad():
                drawn = evaluate(lambda _: Trajectories.draw(teacher.family, z, teacher.conditions(features)))
            return drawn, features

        yield draw


def cached_latents(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Source:
    """Reads what `latent_encoder` encoded."""
    for features in _stacked(batches, teacher):

        def draw(features: dict[str, Tensor] = features) -> Any:
            mean, deviation = features.pop("latents.mean"), features.pop("latents.deviation")
            return mean + deviation * torch.randn_like(mean), features

        yield draw


def cached_trajectories(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Source:
    """Reads what `trajectory_encoder` drew."""
    for features in _stacked(batches, teacher):

        def draw(features: dict[str, Tensor] = features) -> Any:
            names = ("x", "noise_to_signal", "states")
            x, level, states = (features.pop(f"trajectories.{name}") for name in names)
            return Trajectories(x, level.cpu(), states.float()), features

        yield draw


def _stacked(batches: Iterator[list[dict[str, Tensor]]], teacher: Teacher) -> Iterator[dict[str, Tensor]]:
    device = teacher.family.pipeline._execution_device
    for batch in batches:
        yield {name: torch.stack([row[name] for row in batch]).to(device) for name in batch[0]}


Encoder = Callable[[Sequence[int]], dict[str, Tensor]]
"""What is kept of the rows of these numbers, one row each."""


def latent_encoder(rows: Any, prepare: Preparation, teacher: Teacher) -> Encoder:
    """Latents as the autoencoder's law, and features of captions."""

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        images, captions = zip(*[prepare(rows[i], random.Random(i)) for i in indices], strict=True)
        mean, deviation = teacher.family.encode_images(torch.stack(images))
        return {"latents.mean": mean.float(), "latents.deviation": deviation.float(), **teacher.features(captions)}

    return encode


def trajectory_encoder(rows: Any, prepare: Preparation, teacher: Teacher) -> Encoder:
    """An observation of each row with trajectories of the inner flow, and features of captions."""
    encode_latents = latent_encoder(rows, prepare, teacher)

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        features = encode_latents(indices)
        mean, deviation = features.pop("latents.mean"), features.pop("latents.deviation")
        with torch.random.fork_rng():
            torch.manual_seed(indices[0])
            z = mean + deviation * torch.randn_like(mean)
            drawn = Trajectories.draw(teacher.family, z, teacher.conditions(features))
        # Their error is far below that of a map.
        kept = {"x": drawn.x, "noise_to_signal": drawn.noise_to_signal, "states": drawn.states.half()}
        return {**features, **{f"trajectories.{name}": tensor for name, tensor in kept.items()}}

    return encode


class RowCache:
    """What is computed once of each row of a dataset, in a folder, one file a row.

    Args:
        folder: where they are; what another run left there under another identity is not used.
        identity: what they depend on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder / identity

    def file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.safetensors"

    def fill(
        self, num_rows: int, encode: Encoder, process_index: int = 0, num_processes: int = 1, batch_size: int = 16
    ) -> None:
        """Encodes this process's share of the rows, but for those that are there already.

        Rows come in the same chunks every time, since what is random of them may depend on their chunk.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        chunks = [range(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]
        own = chunks[process_index::num_processes]
        missing = [chunk for chunk in own if not all(self.file(index).exists() for index in chunk)]
        for chunk in tqdm(missing, desc="Encoding", disable=not missing):
            batch = encode(chunk)
            for position, index in enumerate(chunk):
                row = {name: tensor[position].cpu().contiguous().clone() for name, tensor in batch.items()}
                write_safetensors(self.file(index), row)

    def __call__(self, row: Captioned, rng: random.Random) -> dict[str, Tensor]:
        file = self.file(int(row.name))
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"'{file}' cannot be read ({error}); delete it, so that it is made again") from error


def _identity(given: argparse.Namespace, rows: Any, teacher: Teacher) -> str:
    """A digest of the options and the data that what is encoded depends on."""
    names = (
        "pretrained_model_name_or_path revision variant mixed_precision max_sequence_length dataset_name "
        "dataset_config_name dataset_split train_data_dir image_column caption_column center_crop cache_trajectories"
    )
    settings = {name: str(getattr(given, name)) for name in names.split()}
    settings["resolution"] = str(teacher.resolution)
    settings["rows"] = rows.fingerprint
    if given.cache_trajectories:
        settings["guidance"] = str(teacher.guidance)
        settings["inner_times"] = str(inner_times(INNER_STEPS, 1.0).tolist())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
