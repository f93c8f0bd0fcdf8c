"""How quickly the trainer caches trajectories and learns from them: `python -m benchmarks.distillation --help`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer

from diamond_diffusers.cli.options import positive_numbers
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.trainer import Trainer

from .command_line import command

NUM_READ = 4
"""Batches whose reading is timed."""


@dataclass(frozen=True)
class Speed:
    """How quickly a run goes.

    Attributes:
        rows: rows that are cached a second.
        bytes: of a cached row on the disk.
        reading: seconds in which the rows of an update are read.
        updates: updates of the weights a second.
    """

    rows: float
    bytes: float
    reading: float
    updates: float


def measure(batch_size: int, num_rows: int, num_steps: int, *further: str) -> Speed:
    """The speed of a run on the embedded model, after one update that is not timed.

    Seconds are those of the CPU, or of the clock where the run is on another device.

    Args:
        batch_size: rows of an update.
        num_rows: rows that are cached.
        num_steps: updates that are timed.
        further: further options of the trainer.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **{"pretrained_model_name_or_path": "miniature", "dataset_name": "miniature", "loss": "trajectories"},
            **{
                "max_train_samples": num_rows,
                "train_batch_size": batch_size,
                "max_train_steps": max(num_steps + 1, NUM_READ),
            },
            **{"logging_steps": num_steps + 2, "report_to": "none", "output_dir": folder},
        }
        given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        run = Trainer(parse_options([*given, "--cache_trajectories", *further]))
        clock = _clock(run.accelerator.device)
        start = clock()
        source = run._open_source()
        cached = clock()
        batches = (draw() for draw in run._open_source())
        next(batches)
        opened = clock()
        for _ in islice(batches, NUM_READ):
            pass
        read = clock()
        marks = []
        for _ in range(num_steps + 1):
            run._update(source)
            run._follow_up()
            run.step += 1
            marks.append(clock())
        size = sum(file.stat().st_size for file in Path(folder).rglob("cache/**/*.safetensors"))
    updates = num_steps / (marks[-1] - marks[0])
    return Speed(num_rows / (cached - start), size / num_rows, (read - opened) / NUM_READ, updates)


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def read() -> float:
        torch.get_device_module(device).synchronize()
        return time.perf_counter()

    return read


def benchmark_distillation(
    batch_sizes: Annotated[str, typer.Option(help="Rows of an update, several separated by commas.")] = "32,256",
    rows: Annotated[int, typer.Option(min=1, help="Rows that are cached, and seen again and again.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Updates that are timed.")] = 3,
    options: Annotated[str, typer.Option(help="Further options of the trainer, as `--cache_dtype float16`.")] = "",
) -> None:
    """Prints how many rows are cached and how many updates are made in a second, on one thread of a CPU or a GPU."""
    torch.set_num_threads(1)
    columns = "rows of an update | milliseconds to read them | updates a second | rows cached a second | bytes a row"
    typer.echo(f"| {columns} |\n|--:|--:|--:|--:|--:|")
    for size in positive_numbers("--batch-sizes", batch_sizes, int, "32,256"):
        speed = measure(size, rows, steps, *options.split())
        told = f"{1000 * speed.reading:.1f} | {speed.updates:.3f} | {speed.rows:.1f} | {speed.bytes:.0f}"
        typer.echo(f"| {size} | {told} |")


app = command(benchmark_distillation)

if __name__ == "__main__":
    app()
