"""What is computed once of the rows of a dataset: clean latents, or trajectories, and the features of captions."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from accelerate.utils import release_memory
from torch import Tensor

from ...core.memory_errors import want_of_memory
from ..errors import TrainingError
from ..teacher import Teacher
from .images import Prepared
from .trajectories import Trajectories, TrajectoryDraws, TrajectoryNoise

logger = logging.getLogger(__name__)

MAX_ROWS_ON_CPU = 16
"""More at once are hardly quicker there, and no error would tell that memory runs out."""


class TeacherBatches:
    """Evaluates the teacher at many rows, as many at once as memory holds.

    Where memory runs out, the rows are evaluated again, at most half as many at once, and so are all later ones. So
    each call evaluates all its rows in batches of one size, and a resumed run that finds as much memory repeats them.

    Args:
        size: rows that are tried first.

    Example:
        >>> TeacherBatches(2)(lambda rows: {"square": torch.arange(5)[rows] ** 2}, 5)["square"]
        tensor([ 0,  1,  4,  9, 16])
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, evaluate: Callable[[slice], Mapping[str, Tensor]], count: int) -> dict[str, Tensor]:
        """The tensors, of one row each, that `evaluate` returns for all slices of `count` rows.

        Raises:
            TrainingError: memory does not hold a single row.
        """
        while True:
            starts = range(0, count, self.size)
            try:
                parts = [evaluate(slice(start, min(start + self.size, count))) for start in starts]
                return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            except (RuntimeError, MemoryError) as error:
                reason = want_of_memory(error)
                if reason is None:
                    raise
                failed = min(self.size, count)
                if failed == 1:
                    raise TrainingError(
                        f"memory does not hold the teacher's evaluation of a single row ({reason}); lower --resolution,"
                        " or take --mixed_precision bf16"
                    ) from error
            # Only here, where the error is gone, is what its frames held.
            self.size = failed // 2
            release_memory()
            logger.warning("memory did not hold %d rows of the teacher at once; going on with %d", failed, self.size)


@dataclass
class Encoder(ABC):
    """Computes what is kept of rows.

    Args:
        teacher: the teacher.
        batch_size: rows that it evaluates at once, as far as memory allows.
        dtype: floating-point type in which latents and states are kept.
        num_inference_steps: steps of a sample of the teacher, which is drawn for each caption; None where rows have
            images.
    """

    teacher: Teacher
    batch_size: int
    dtype: torch.dtype = torch.float32
    num_inference_steps: int | None = None
    _latent_batches: TeacherBatches = field(init=False)
    _flow_batches: TeacherBatches = field(init=False)

    def __post_init__(self) -> None:
        # The autoencoder and the network want different amounts of memory.
        self._latent_batches, self._flow_batches = TeacherBatches(self.batch_size), TeacherBatches(self.batch_size)

    @abstractmethod
    def __call__(self, rows: Sequence[Prepared], seed: int, max_rows: int) -> dict[str, Tensor]:
        """What is kept of prepared rows, with one row each, on the CPU.

        Args:
            rows: the first rows of a shard, or all of them.
            seed: seed of the shard's noise.
            max_rows: rows of a whole shard: noise is drawn for all, so that it does not depend on how many there are.
        """

    def encode(self, rows: Sequence[Prepared], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and deviations of the autoencoder's latents, `mean` and `deviation`, and the features of captions.

        Samples of the teacher have no deviation. Each is drawn from noise of its own, so that it does not depend on how
        many are drawn at once.
        """
        draw = random.Random(seed)
        seeds = [draw.getrandbits(63) for _ in rows]

        def latents(part: slice) -> dict[str, Tensor]:
            images, captions = zip(*rows[part], strict=True)
            if self.num_inference_steps is None:
                mean, deviation = self.teacher.family.encode_images(torch.stack(images))
                return {"mean": mean.float(), "deviation": deviation.float()}
            noise = [torch.Generator().manual_seed(own) for own in seeds[part]]
            return {"mean": self.teacher.sample(captions, self.num_inference_steps, noise)}

        def evaluate(part: slice) -> dict[str, Tensor]:
            found = {f"latents.{name}": tensor for name, tensor in latents(part).items()}
            found |= self.teacher.features([caption for _, caption in rows[part]])
            return {name: tensor.cpu() for name, tensor in found.items()}

        features = self._latent_batches(evaluate, len(rows))
        names = [name for name in ("mean", "deviation") if f"latents.{name}" in features]
        return {name: features.pop(f"latents.{name}") for name in names}, features


class LatentEncoder(Encoder):
    """Keeps means and deviations of the autoencoder's latents; a sample of them is drawn anew for every batch."""

    def __call__(self, rows: Sequence[Prepared], seed: int, max_rows: int) -> dict[str, Tensor]:
        latents, features = self.encode(rows, seed)
        return {**features, **{f"latents.{name}": tensor.to(self.dtype) for name, tensor in latents.items()}}


@dataclass
class TrajectoryEncoder(Encoder):
    """Keeps an observation of each row, with trajectories of the teacher's inner flow.

    Args:
        draws: how many, and of which observations.
    """

    draws: TrajectoryDraws = field(default_factory=TrajectoryDraws)

    def __call__(self, rows: Sequence[Prepared], seed: int, max_rows: int) -> dict[str, Tensor]:
        latents, features = self.encode(rows, seed)
        z = mean = latents["mean"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if "deviation" in latents:
                z = mean + latents["deviation"] * torch.randn(max_rows, *mean.shape[1:])[: len(rows)]
            noise = TrajectoryNoise.draw(max_rows, mean.shape[1:], self.draws)
        device, family = self.teacher.family.device, self.teacher.family

        def evaluate(part: slice) -> dict[str, Tensor]:
            conditions = self.teacher.conditions({name: kept[part].to(device) for name, kept in features.items()})
            drawn = Trajectories.follow(family, z[part].to(device), conditions, noise.rows(part, device))
            kept = {"x": drawn.x.to(self.dtype), "states": drawn.states.to(self.dtype)}
            kept["noise_to_signal"] = drawn.noise_to_signal
            return {f"trajectories.{name}": tensor.cpu() for name, tensor in kept.items()}

        return {**features, **self._flow_batches(evaluate, len(rows))}


def default_batch_size(device: torch.device, rows_of_shard: int) -> int:
    """Rows that the teacher evaluates at once, as far as memory allows: a whole shard, or fewer on the CPU."""
    return min(rows_of_shard, MAX_ROWS_ON_CPU) if device.type == "cpu" else rows_of_shard
