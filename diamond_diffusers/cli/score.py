"""The command `diamond-diffusers score`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from .options import Device, PromptsSource, all_texts, checked_texts, named_dtype, text_table, usable_device

if TYPE_CHECKING:
    from ..evaluation.scoring.image_files import Scores
    from ..rewards import Reward

ImagePaths = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, and folders of them.")]
RewardExpression = Annotated[str, typer.Option("--reward", help="Such as 'imagereward + 5*hpsv2, nsfw < 0.2'.")]
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

MET = "constraints met"
"""The header of what is 1 or 0."""


def score(
    images: ImagePaths,
    reward: RewardExpression,
    prompts: Prompts = None,
    prompts_source: PromptsSource = None,
    output_format: Format = "table",
    batch_size: BatchSize = 8,
    dtype: DType = "auto",
    device: Device = "auto",
) -> None:
    """Scores image files and folders, and prints a table or CSV."""
    if output_format not in ("table", "csv"):
        raise ValueError(f"--format is {output_format!r}; choose table or csv")

    from ..evaluation.scoring.image_files import batches_of_one_size, find_images, score_files
    from ..rewards import as_reward

    paths = find_images(images)
    given = all_texts(prompts, prompts_source, "--prompt") if prompts or prompts_source else []
    if not given and _reads_prompts(reward):
        raise ValueError(
            f"--prompt is not given, but the reward {reward!r} reads prompts; give one, which may be empty"
        )
    texts = _one_each(given or [""], paths)
    batches = batches_of_one_size(paths, batch_size)
    place, precision = usable_device(device), None if dtype == "auto" else named_dtype(dtype)
    judge = as_reward(reward).to(place, precision)
    judge.check_prompts(texts)
    scores = score_files(judge, paths, texts, batches, place)
    columns = [_columns(judge, result) for result in scores]
    headers, rows = list(columns[0]), [list(column.values()) for column in columns]
    if output_format == "csv":
        _print_csv(headers, paths, texts, rows)
    else:
        _print_table(headers, paths, rows)


def _columns(judge: Reward, result: Scores) -> dict[str, float]:
    """What is printed of an image, by its header."""
    from ..rewards import WeightedSum

    columns = dict(result.terms)
    weighted = zip(judge.weights, judge.rewards, strict=True) if isinstance(judge, WeightedSum) else [(1.0, judge)]
    summed = [(weight, part.name) for weight, part in weighted if not part.is_constraint]
    # A reward of one term is that term, and constraints alone have no total.
    if summed and not (len(summed) == 1 and summed[0][0] == 1 and summed[0][1] in result.terms):
        columns[judge.name] = result.total
    if result.constraints_met is not None:
        columns[MET] = float(result.constraints_met)
    return columns


def _reads_prompts(expression: str) -> bool:
    """Whether a term of the expression does, known before any is loaded."""
    from ..rewards import registered_reward
    from ..rewards.expressions import parse_expression

    registered = [registered_reward(name) for _, name in parse_expression(expression)]
    return any(getattr(reward, "reads_prompts", True) for reward in registered)


def _one_each(prompts: Sequence[str], paths: Sequence[Path]) -> list[str]:
    if len(prompts) not in (1, len(paths)):
        raise ValueError(
            f"--prompt is given {len(prompts)} times for {len(paths)} images, with the lines of --prompts; give "
            "one text, or one for each"
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
        cells = (f"{value:.0f}" if name == MET else f"{value:.4f}" for name, value in zip(headers, row, strict=True))
        table.add_row(escape(_shown(path)), *cells)
    if len(rows) > 1:
        table.add_section()
        table.add_row("mean", *(f"{sum(column) / len(rows):.4f}" for column in zip(*rows, strict=True)))
    Console().print(table)
