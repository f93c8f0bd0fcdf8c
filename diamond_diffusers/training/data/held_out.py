"""Rows that training never sees, on which the map is judged."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import Subset

from ..errors import TrainingError
from ..options.records import MINIATURE
from .hub import HubDataset, first_rows
from .loading import load_rows
from .miniature import HeldOutScenes
from .rows import Captioned, CaptionedImages, FirstRows

if TYPE_CHECKING:
    from ..options.records import DataOptions


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        training: those that are trained on, as `load_rows` returns them.
        held_out: those that the map is judged on, read by their number; empty where it is not judged.
        num_taken: rows that training lacks for it: 0 where those held out are no part of what it would see anyway.
    """

    training: Any
    held_out: Sequence[Captioned]
    num_taken: int = 0

    @property
    def is_streamed(self) -> bool:
        """Whether the number of rows is not known."""
        return isinstance(self.training, HubDataset) and self.training.is_streamed

    @property
    def fingerprint(self) -> str:
        """A text that changes where the held-out rows do; it reads their captions."""
        rows = self.held_out
        captions = [(rows[index].name, rows[index].captions) for index in range(len(rows))]
        return f"{getattr(self.training, 'fingerprint', '')} {captions}"


class AllBut(Subset[Captioned]):
    """The rows of a dataset without some of them.

    Args:
        rows: the dataset.
        left_out: the numbers of those, ascending.
    """

    def __init__(self, rows: CaptionedImages, left_out: Sequence[int]) -> None:
        super().__init__(rows, range(len(rows) - len(left_out)))  # type: ignore[arg-type]
        # The rows left before each of them: datasets are too long for a list of the others.
        self._rows_before = [number - count for count, number in enumerate(left_out)]
        digest = hashlib.sha256(str(list(left_out)).encode()).hexdigest()[:16]
        self.fingerprint = f"{rows.fingerprint} without {digest}"

    def __getitem__(self, index: int) -> Captioned:
        return self.dataset[index + bisect_right(self._rows_before, index)]

    def __getitems__(self, indices: list[int]) -> list[Captioned]:
        return [self[index] for index in indices]


def load_split_rows(options: DataOptions, cache_dir: str | None, seed: int, num_held_out: int) -> Rows:
    """The rows that the options name, some of them held out.

    Held out are, of the miniature's world, scenes of captions that it keeps for that; of a streamed dataset, its first
    rows; else the rows beyond `max_train_samples` where there are as many, so that training sees what it would see
    anyway; and else rows at even distances, without which it then does. Rows at even distances are of all kinds even
    where a dataset is sorted. Of prompts, those that equal a held-out one are left out, too.

    Args:
        options, cache_dir, seed: as of `load_rows`.
        num_held_out: 0 for none.

    Raises:
        ForeignFileError: as of `load_rows`.
        TrainingError: as of `load_rows`, or there are too few rows.
    """
    if num_held_out == 0:
        return Rows(load_rows(options, cache_dir, seed), [])
    if options.dataset_name == MINIATURE:
        return Rows(load_rows(options, cache_dir, seed), HeldOutScenes(num_held_out))
    if options.streaming:
        # One is left to be trained on.
        first = first_rows(options, cache_dir, num_held_out + 1)
        _check_enough(len(first) - 1, num_held_out)
        return Rows(load_rows(options, cache_dir, seed, num_skipped=num_held_out), first[:num_held_out], num_held_out)
    rows = load_rows(options, cache_dir, seed)
    if isinstance(rows, list):
        return _split_prompts(rows, num_held_out)
    if isinstance(rows, FirstRows) and len(rows.dataset) - len(rows) >= num_held_out:  # type: ignore[arg-type]
        spare = len(rows.dataset) - len(rows)  # type: ignore[arg-type]
        numbers = [len(rows) + number for number in evenly_spaced(num_held_out, spare)]
        return Rows(rows, Subset(rows.dataset, numbers))  # type: ignore[arg-type]
    _check_enough(len(rows) - 1, num_held_out)
    numbers = evenly_spaced(num_held_out, len(rows))
    return Rows(AllBut(rows, numbers), Subset(rows, numbers), num_held_out)  # type: ignore[arg-type]


def _split_prompts(rows: list[Captioned], num_held_out: int) -> Rows:
    different = list({row.captions: row for row in rows}.values())
    _check_enough(len(different) - 1, num_held_out)
    held_out = [different[number] for number in evenly_spaced(num_held_out, len(different))]
    prompts = {row.captions for row in held_out}
    training = [row for row in rows if row.captions not in prompts]
    return Rows(training, held_out, len(rows) - len(training))


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`, in the middle of as many equal parts of them.

    Example:
        >>> evenly_spaced(3, 9)
        [1, 4, 7]
    """
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def _check_enough(available: int, count: int) -> None:
    if available < count:
        raise TrainingError(
            f"--num_validation_observations is {count}, but the data has {max(available, 0)} rows to hold out; lower "
            "it, give more data, or drop --validation_metrics"
        )
