"""The scores of image files by a reward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ...files.foreign import ForeignFileError
from ...files.foreign_images import UNDECODABLE, why_undecodable
from ...rewards import Reward
from ...rewards.preprocessing import images_from_pil
from ..sheets import OVERVIEWS

_TURNED = (5, 6, 7, 8)
"""Orientations of a camera's image that lies on its side."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Scores:
    """The scores of one image.

    Attributes:
        terms: the score of every reward in the expression, by name.
        total: the score of the expression.
        constraints_met: whether the image holds all constraints of the expression; None where it has none.
    """

    terms: dict[str, float]
    total: float
    constraints_met: bool | None = None


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the images directly inside of the given folders, by name, without overviews of `generate`.

    Raises:
        ValueError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise ValueError(f"IMAGE is '{path}', which does not exist; give image files or folders")
        files = (file for file in path.iterdir() if file.name not in OVERVIEWS)
        within = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir())
        if not within:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise ValueError(f"IMAGE is the folder '{path}', which holds no {suffixes} file; name an image file")
        found += within
    return found


def score_files(
    reward: Reward, paths: Sequence[Path], prompts: Sequence[str], batches: Sequence[Sequence[int]], device: str
) -> list[Scores]:
    """Scores of image files in their order.

    Args:
        reward: the reward, on its device.
        paths: paths of the images.
        prompts: one prompt for each image.
        batches: the rows of `paths` that are scored together; the images of a batch have one size.
        device: device of the images.

    Raises:
        ValueError: a file cannot be read as an image.
    """
    scores: dict[int, Scores] = {}
    for rows in batches:
        images = torch.cat([read_image(paths[row]) for row in rows]).to(device)
        with torch.no_grad():
            output = reward.evaluate(images, [prompts[row] for row in rows])
        for i, row in enumerate(rows):
            terms = {name: term[i].item() for name, term in output.terms.items()}
            met = None if output.violation is None else output.violation[i].item() == 0
            scores[row] = Scores(terms, output.total[i].item(), met)
    return [scores[row] for row in range(len(paths))]


def batches_of_one_size(paths: Sequence[Path], batch_size: int) -> list[list[int]]:
    """Splits the rows of `paths` into batches of at most `batch_size` images that have one size.

    Raises:
        ValueError: a file is no image.
    """
    rows_by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        with _opened(path) as image:
            # Pillow turns a TIFF itself.
            is_turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            rows_by_size[image.size[::-1] if is_turned else image.size].append(row)
    return [
        rows[start : start + batch_size] for rows in rows_by_size.values() for start in range(0, len(rows), batch_size)
    ]


def read_image(path: Path) -> Tensor:
    """The image `[1, 3, H, W]` in [0, 1], upright.

    Raises:
        ForeignFileError: the file cannot be read as an image.
    """
    with _opened(path) as image:
        return images_from_pil([ImageOps.exif_transpose(image)])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            # Cameras put small previews beside an image.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise ValueError(f"it has {image.n_frames} frames")  # type: ignore[attr-defined]
            yield image
    except UNDECODABLE as error:
        reason = why_undecodable(error)
        raise ForeignFileError(
            f"IMAGE is '{path}', which cannot be read ({reason}); give an 8-bit PNG, JPEG or WebP file of one image"
        ) from error
