"""The command `diamond-diffusers score`."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .options import Device, checked_texts, named_dtype, text_table, usable_device

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..rewards import Reward

_TURNED = (5, 6, 7, 8)
"""Orientations of a camera's image that lies on its side."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

ImagePaths = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, and folders of them.")]
RewardExpression = Annotated[str, typer.Option("--reward", help="Such as 'imagereward + 5*hpsv2 - 0.2*jpeg_size'.")]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        callback=checked_texts,
        help="One for all images, or one for each in order; rewards of the image alone need none.",
    ),
]
Format = Annotated[str, typer.Option("--format", help="'table' or 'csv'.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images scored at once, where their sizes are equal.")]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16; 'auto' is each reward's own.")]


@dataclass(frozen=True)
class Scores:
    """The scores of one image.

    Attributes:
        terms: of every reward in the expression, by name.
        total: of the expression.
    """

    terms: dict[str, float]
    total: float


def score(
    images: ImagePaths,
    reward: RewardExpression,
    prompts: Prompts = None,
    output_format: Format = "table",
    batch_size: BatchSize = 8,
    dtype: DType = "auto",
    device: Device = "auto",
) -> None:
    """Scores image files and folders, and prints a table or CSV."""
    if output_format not in ("table", "csv"):
        raise ValueError(f"--format is {output_format!r}; choose table or csv")
    paths = find_images(images)
    if not prompts and _reads_prompts(reward):
        raise ValueError(
            f"--prompt is not given, but the reward {reward!r} reads prompts; give one, which may be empty"
        )
    texts = _one_each(prompts or [""], paths)
    batches = batches_of_one_size(paths, batch_size)
    place, precision = usable_device(device), None if dtype == "auto" else named_dtype(dtype)

    from ..rewards import as_reward

    judge = as_reward(reward).to(place, precision)
    scores = score_files(judge, paths, texts, batches, place)
    # A reward of one term is that term.
    totals = [] if list(scores[0].terms) == [judge.name] else [judge.name]
    rows = [[*result.terms.values(), *([result.total] if totals else [])] for result in scores]
    headers = [*scores[0].terms, *totals]
    if output_format == "csv":
        _print_csv(headers, paths, texts, rows)
    else:
        _print_table(headers, paths, rows)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the images directly within the given folders, by name, without overviews of `generate`.

    Raises:
        ValueError: a path does not exist, or a folder holds no image.
    """
    from ..evaluation.side_by_side import OVERVIEWS

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
            raise ValueError(f"IMAGE is the folder '{path}', which holds no {', '.join(IMAGE_SUFFIXES)} file")
        found += within
    return found


def score_files(
    reward: Reward, paths: Sequence[Path], prompts: Sequence[str], batches: Sequence[Sequence[int]], device: str
) -> list[Scores]:
    """Scores of image files in their order.

    Args:
        reward: on its device.
        paths: of the images.
        prompts: one for each image.
        batches: the rows of `paths` that are scored at once, each of images of one size.
        device: where images are put.

    Raises:
        ValueError: a file cannot be read as an image.
    """
    import torch

    scores: dict[int, Scores] = {}
    for rows in batches:
        images = torch.cat([_read(paths[row]) for row in rows]).to(device)
        with torch.no_grad():
            output = reward.evaluate(images, [prompts[row] for row in rows])
        for i, row in enumerate(rows):
            terms = {name: term[i].item() for name, term in output.terms.items()}
            scores[row] = Scores(terms, output.total[i].item())
    return [scores[row] for row in range(len(paths))]


def batches_of_one_size(paths: Sequence[Path], batch_size: int) -> list[list[int]]:
    """Splits the rows of `paths` into batches of at most `batch_size` images that have one size.

    Raises:
        ValueError: a file is no image.
    """
    from PIL import ExifTags

    rows_by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, path in enumerate(paths):
        with _opened(path) as image:
            # Pillow turns a TIFF itself.
            is_turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED
            rows_by_size[image.size[::-1] if is_turned else image.size].append(row)
    return [
        rows[start : start + batch_size] for rows in rows_by_size.values() for start in range(0, len(rows), batch_size)
    ]


def _read(path: Path) -> Tensor:
    """The image `[1, 3, H, W]` in [0, 1], upright."""
    from PIL import ImageOps

    from ..rewards.preprocessing import images_from_pil

    with _opened(path) as image:
        return images_from_pil([ImageOps.exif_transpose(image)])


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    from PIL import Image

    from ..files.foreign import ForeignFileError
    from ..files.foreign_images import UNDECODABLE, why_undecodable

    try:
        with Image.open(path) as image:
            # Cameras put small previews beside an image.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise ValueError(f"it has {image.n_frames} frames")
            yield image
    except UNDECODABLE as error:
        reason = why_undecodable(error)
        raise ForeignFileError(
            f"IMAGE is '{path}', which cannot be read ({reason}); give an 8-bit PNG, JPEG or WebP file of one image"
        ) from error


def _reads_prompts(expression: str) -> bool:
    """Whether a term of the expression does, known before any is loaded."""
    from ..rewards.registry import parse_expression, registered_reward

    registered = [registered_reward(name) for _, name in parse_expression(expression)]
    return any(getattr(reward, "reads_prompts", True) for reward in registered)


def _one_each(prompts: Sequence[str], paths: Sequence[Path]) -> list[str]:
    if len(prompts) not in (1, len(paths)):
        raise ValueError(
            f"--prompt is given {len(prompts)} times for {len(paths)} images; give it once or once for each"
        )
    return list(prompts) * len(paths) if len(prompts) == 1 else list(prompts)


def _print_csv(headers: Sequence[str], paths: Sequence[Path], prompts: Sequence[str], rows: list[list[float]]) -> None:
    from ..files.csv_tables import csv_table

    scored = zip(paths, prompts, rows, strict=True)
    cells = [[_shown(path), prompt, *(f"{value:.6g}" for value in row)] for path, prompt, row in scored]
    typer.echo(csv_table(["image", "prompt", *headers], cells), nl=False)


def _shown(path: Path) -> str:
    """A path without bytes that are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _print_table(headers: Sequence[str], paths: Sequence[Path], rows: list[list[float]]) -> None:
    table = text_table("image", *headers)
    for path, row in zip(paths, rows, strict=True):
        table.add_row(escape(_shown(path)), *(f"{value:.4f}" for value in row))
    if len(rows) > 1:
        table.add_section()
        table.add_row("mean", *(f"{sum(column) / len(rows):.4f}" for column in zip(*rows, strict=True)))
    Console().print(table)
