"""The options of `diamond-diffusers benchmark` and `redraw` that no other command has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import MAX_COUNT, MAX_NUMBER

Budgets = Annotated[
    str | None,
    typer.Option(help="Network evaluations an image, separated by commas; a backward pass counts 2. By default 120."),
]
BudgetsSeconds = Annotated[
    str | None,
    typer.Option(help="Seconds an image in place of evaluations: each method is timed first. On a CPU, CPU seconds."),
]
MaxRewardCalls = Annotated[
    int | None, typer.Option(min=1, max=MAX_NUMBER, help="The most scores of the reward for an image, at every budget.")
]
Methods = Annotated[
    str | None,
    typer.Option(
        help="Names, separated by commas: published methods, your own, the grid's; 'presets' and 'grid' name all of "
        "these; by default all."
    ),
]
NumPrompts = Annotated[int | None, typer.Option(help="The first so many, in a fixed random order; by default all.")]
HardShare = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of hard captions, of those in number; by default as they come."),
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="K/N", help="Draws a part of all images, such as 2/4, and reports nothing; by default all."
    ),
]
ReportOnly = Annotated[
    bool, typer.Option("--report-only", help="Draws nothing, and reports the methods that have all their images.")
]
NumImages = Annotated[
    int, typer.Option("--num-images-per-prompt", min=1, max=MAX_COUNT, help="From two on, diversity is reported.")
]
HeldOut = Annotated[
    list[str] | None, typer.Option("--held-out-reward", help="Scores images, never followed; may come several times.")
]
DiversityCLIP = Annotated[
    str | None, typer.Option(help="Checkpoint in whose space diversity is measured; by default that of the prompts.")
]
Export = Annotated[list[str] | None, typer.Option("--export", help="geneval or unigenbench: further image folders.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images drawn at once.")]
RunSeed = Annotated[int, typer.Option(min=0, help="Of the run; every method draws from the same seeds.")]
NumSteps = Annotated[
    int | None, typer.Option("--num-inference-steps", min=1, max=MAX_COUNT, help="Steps, where a method names none.")
]
Results = Annotated[Path, typer.Option(help="Folder of the results; a killed run resumes from it.")]
RecordFile = Annotated[
    Path,
    typer.Argument(
        metavar="RECORD", exists=True, dir_okay=False, help="The .json file beside an image of a benchmark."
    ),
]
Redrawn = Annotated[Path, typer.Option(help="Where the image is written.")]
