"""Judges sets of images, a batch at a time, in any number of processes, and goes on where an earlier run was ended."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..files import plain
from ..scoring.image_files import batches_of_one_size, read_image
from .images import ImageSet, JudgedImage
from .judges import ImageJudge
from .verdicts import StoredVerdict, VerdictFolder, VerdictKey

OnBatch = Callable[[str, int, int], None]
"""Gets a judge's name, how many images this process has judged by it, and how many it judges in all."""


@dataclass(frozen=True)
class Share:
    """Which of the batches a process judges.

    Attributes:
        index: number of the process, from 0 on.
        count: number of processes.
    """

    index: int = 0
    count: int = 1


class CheckedImages:
    """Sets of images all of which can be read, with hashes of their files.

    Raises:
        ForeignFileError: a file cannot be read as an image.
    """

    def __init__(self, image_sets: Sequence[ImageSet]) -> None:
        self.image_sets = image_sets
        self._hashes: dict[Path, str] = {}
        for image_set in image_sets:
            for image in image_set.images:
                read_image(image.path)
                self._hashes[image.path] = hashlib.sha256(image.path.read_bytes()).hexdigest()

    def inputs(self, image: JudgedImage, judge: ImageJudge) -> str:
        """A hash of all that a verdict depends on."""
        prompt = plain([image.prompt.text, image.prompt.category, image.prompt.metadata])
        parts = [self._hashes[image.path], json.dumps(prompt, sort_keys=True), judge.identity]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def judge_images(
    checked: CheckedImages,
    judge: ImageJudge,
    folder: VerdictFolder,
    batch_size: int,
    share: Share | None = None,
    on_batch: OnBatch | None = None,
) -> None:
    """Judges the images of all sets that have no verdict yet, and keeps the verdicts.

    The images of a set are always split into the same batches, of images of one size; what is left of a batch is judged
    together. So verdicts do not depend on how often a run is ended, or on the number of processes.

    Args:
        checked: the images.
        judge: what judges them.
        folder: where verdicts are kept.
        batch_size: number of images that are judged at once.
        share: the part of the batches that is judged here; by default all.
        on_batch: is told of the progress.

    Raises:
        ValueError: a verdict is no number, or the judge refuses an image.
    """
    share = share or Share()
    batches = [(image_set, batch) for image_set in checked.image_sets for batch in _batches(image_set, batch_size)]
    mine = []
    for image_set, batch in batches[share.index :: share.count]:
        missing = [image for image in batch if _stored(checked, judge, folder, image_set, image) is None]
        if missing:
            mine.append((image_set, missing))
    judge.check([image.prompt for _, batch in mine for image in batch])
    total, done = sum(len(batch) for _, batch in mine), 0
    for image_set, batch in mine:
        if on_batch is not None:
            on_batch(judge.name, done, total)
        folder.add(_judge_batch(checked, judge, image_set, batch))
        done += len(batch)
    if on_batch is not None:
        on_batch(judge.name, done, total)


def verdicts_of(checked: CheckedImages, judges: Sequence[ImageJudge], folder: VerdictFolder) -> list[StoredVerdict]:
    """The verdicts of all judges on all images, in the order of sets, judges and images.

    Raises:
        ValueError: one is missing, because another process has not finished its share.
    """
    found = []
    for image_set in checked.image_sets:
        for judge in judges:
            for image in image_set.images:
                verdict = _stored(checked, judge, folder, image_set, image)
                if verdict is None:
                    raise ValueError(
                        f"'{image.path}' has no verdict of {judge.name} yet; run all shares, then once without --shard"
                    )
                found.append(verdict)
    return found


def _batches(image_set: ImageSet, batch_size: int) -> list[list[JudgedImage]]:
    paths = [image.path for image in image_set.images]
    return [[image_set.images[row] for row in rows] for rows in batches_of_one_size(paths, batch_size)]


def _stored(
    checked: CheckedImages, judge: ImageJudge, folder: VerdictFolder, image_set: ImageSet, image: JudgedImage
) -> StoredVerdict | None:
    return folder.get(VerdictKey(image_set.name, judge.name, image.name), checked.inputs(image, judge))


def _judge_batch(
    checked: CheckedImages, judge: ImageJudge, image_set: ImageSet, batch: Sequence[JudgedImage]
) -> list[StoredVerdict]:
    images = torch.cat([read_image(image.path) for image in batch])
    verdicts = judge.judge(images, [image.prompt for image in batch])
    for image, verdict in zip(batch, verdicts, strict=True):
        for name, value in (("score", verdict.score), *verdict.details.items()):
            if not math.isfinite(value):
                what = f"{name} {value}" if name == "score" else f"figure {name!r}, which is {value}"
                raise ValueError(f"{judge.name} gives '{image.path}' the {what}; mend the judge")
    return [
        StoredVerdict(
            image_set=image_set.name,
            judge=judge.name,
            image=image.name,
            inputs=checked.inputs(image, judge),
            prompt=image.prompt.text,
            category=image.prompt.category,
            score=float(verdict.score),
            reason=verdict.reason,
            details={name: float(value) for name, value in verdict.details.items()},
        )
        for image, verdict in zip(batch, verdicts, strict=True)
    ]
