"""Latents and trajectories that are computed once for each row of a dataset, and kept in files."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from ...core.glass import inner_times
from ...files.output import writing
from ...files.staging import write_safetensors
from ..errors import TrainingError
from .images import Preparation
from .rows import Captioned
from .trajectories import INNER_STEPS, Trajectories

if TYPE_CHECKING:
    from ..options.records import Options
    from ..teacher import Teacher


Encoder = Callable[[Sequence[int]], dict[str, Tensor]]
"""What is kept of the rows of these numbers, one row each."""


def latent_encoder(rows: Any, prepare: Preparation, teacher: Teacher) -> Encoder:
    """Encodes rows as means and deviations of the autoencoder's latents, and as features of captions."""

    def encode(indices: Sequence[int]) -> dict[str, Tensor]:
        images, captions = zip(*[prepare(rows[i], random.Random(i)) for i in indices], strict=True)
        mean, deviation = teacher.family.encode_images(torch.stack(images))
        return {"latents.mean": mean.float(), "latents.deviation": deviation.float(), **teacher.features(captions)}

    return encode


def trajectory_encoder(rows: Any, prepare: Preparation, teacher: Teacher) -> Encoder:
    """Encodes rows as an observation with trajectories of the inner flow, and as features of captions."""
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
    """A folder with one file for each row of a dataset, which holds what was computed for the row.

    Args:
        folder: the folder of the files; files of another identity are not used.
        identity: a digest of everything that the files depend on.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder / identity

    def file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.safetensors"

    def fill(
        self, num_rows: int, encode: Encoder, process_index: int = 0, num_processes: int = 1, batch_size: int = 16
    ) -> None:
        """Encodes this process's share of the rows, except those that are there already.

        Rows come in the same chunks every time, since their randomness may depend on the chunk.
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


def identity(options: Options, rows: Any, teacher: Teacher) -> str:
    """A digest of the options and the data on which the encoded rows depend."""
    names = (
        "pretrained_model_name_or_path revision variant mixed_precision max_sequence_length dataset_name "
        "dataset_config_name dataset_split train_data_dir image_column caption_column center_crop cache_trajectories"
    )
    values = options.by_flag()
    settings = {name: str(values[name]) for name in names.split()}
    settings["resolution"] = str(teacher.resolution)
    settings["rows"] = rows.fingerprint
    if options.preparation.cache_trajectories:
        settings["guidance"] = str(teacher.guidance)
        settings["inner_times"] = str(inner_times(INNER_STEPS, 1.0).tolist())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
