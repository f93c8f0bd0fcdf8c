"""Rows that are computed once and kept in files, many rows a file."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from ...core.glass import inner_times
from ...files.output import writing
from ...files.staging import write_safetensors
from ..errors import TrainingError
from ..options.identity import digest_of
from .batches import Order, prepared_lists
from .encoding import Encoder
from .images import Prepare
from .rows import CaptionedImages, fingerprint
from .trajectories import INNER_STEPS, TrajectoryDraws

if TYPE_CHECKING:
    from ..options.records import Options
    from ..teacher import Teacher

READ_AT_ONCE = 16
"""Images that a process reads ahead."""
PIXELS_OF_SHARD = 64 * 1024**2
MAX_ROWS_OF_SHARD = 1024


def rows_of_shard(resolution: int) -> int:
    """Rows of a shard: its images have 64 megapixels, so that little is computed again after an interruption."""
    return max(1, min(MAX_ROWS_OF_SHARD, PIXELS_OF_SHARD // resolution**2))


@dataclass(frozen=True)
class ShardedCache:
    """The rows that a run is going to see, in the order of its first epoch, in files of many rows each: shards.

    A shard is written whole or not at all. Rows are told by their *place*, which is their number in that order: a
    longer run sees the same rows at the same places, and more.

    Args:
        folder: folder of the shards.
        num_rows: number of rows that are kept.
        shard_size: rows of a shard; the last one may have fewer.
    """

    folder: Path
    num_rows: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_size)

    def file(self, shard: int) -> Path:
        """The file of a shard, which is named by the place of its first row."""
        return self.folder / f"{shard * self.shard_size:08d}.safetensors"

    def places(self, shard: int) -> range:
        """The places of the rows of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_rows))

    def fill(
        self, rows: CaptionedImages, prepare: Prepare, encode: Encoder, order: Order, num_workers: int = 0
    ) -> None:
        """Computes this process's shards, except those that are there already.

        Raises:
            TrainingError: a row cannot be prepared, or a shard cannot be read.
            UnwritableError: a shard cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        own = range(order.process_index, self.num_shards, order.num_processes)
        missing = [shard for shard in own if not self._is_there(shard)]
        if not missing:
            return
        prepared = self._prepared(missing, rows, prepare, order, num_workers)
        with tqdm(total=sum(len(self.places(shard)) for shard in missing), desc="Encoding") as bar:
            for shard in missing:
                found = list(islice(prepared, len(self.places(shard))))
                seed = random.Random(f"{order.seed} shard {shard}").getrandbits(63)
                encoded = encode(found, seed, self.shard_size)
                write_safetensors(self.file(shard), {name: kept.contiguous() for name, kept in encoded.items()})
                bar.update(len(found))

    def _prepared(
        self, shards: Iterable[int], rows: CaptionedImages, prepare: Prepare, order: Order, num_workers: int
    ) -> Iterator[Any]:
        """The prepared rows of shards, one after the other."""
        first_epoch = order.permutation(0).tolist()
        # The randomness of a row is told by its number, so that crops do not depend on the order.
        items = [(first_epoch[place], first_epoch[place]) for shard in shards for place in self.places(shard)]
        lists = [items[start : start + READ_AT_ONCE] for start in range(0, len(items), READ_AT_ONCE)]
        for ready in prepared_lists(rows, prepare, lists, order.seed, num_workers):
            yield from ready

    def _is_there(self, shard: int) -> bool:
        """Whether the rows of a shard have been written; those of a shorter run are not enough."""
        if not self.file(shard).exists():
            return False
        with self._reading(shard), safe_open(self.file(shard), "pt") as opened:
            names = opened.keys()
            return all(opened.get_slice(name).get_shape()[0] >= len(self.places(shard)) for name in names)

    def read(self, shard: int) -> dict[str, Tensor]:
        """The rows of a shard; what of it is read from the disk is what is looked at.

        Raises:
            TrainingError: the file cannot be read.
        """
        with self._reading(shard):
            return load_file(self.file(shard))

    @contextmanager
    def _reading(self, shard: int) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            file = self.file(shard)
            raise TrainingError(f"'{file}' cannot be read ({error}); delete it, so that it is made again") from error


def identity(options: Options, rows: Any, teacher: Teacher, order: Order, shard_size: int) -> str:
    """A digest of the options and the data on which the encoded rows depend."""
    names = (
        "pretrained_model_name_or_path revision variant mixed_precision max_sequence_length dataset_name "
        "dataset_config_name dataset_split train_data_dir image_column caption_column center_crop cache_trajectories "
        "cache_dtype"
    )
    settings = {
        "resolution": str(teacher.resolution),
        "rows": fingerprint(rows),
        "order": f"{order.num_rows} rows, seed {order.seed}, {shard_size} a shard",
    }
    if options.model.quantize is not None:
        settings["quantize"] = options.model.quantize
    if options.learns_from_samples:
        settings["samples"] = f"{options.preparation.teacher_num_inference_steps} steps, {teacher.guidance}"
    if options.preparation.cache_trajectories:
        settings["guidance"] = str(teacher.guidance)
        settings["inner_times"] = str(inner_times(INNER_STEPS, 1.0).tolist())
        if options.trajectory_draws != TrajectoryDraws():
            settings["draws"] = str(options.trajectory_draws)
    return digest_of(options, names, settings)
