"""Hours and gigabytes of the distillation of a published model: `python -m benchmarks.distillation_plan --help`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from diamond_diffusers.cli.options import MAX_PIXELS, text_table
from diamond_diffusers.core.checks import check_choice
from diamond_diffusers.training.data.trajectories import INNER_STEPS

from .command_line import command
from .distillation_counts import (
    FORMS,
    PAIR,
    TRAINED_BYTES,
    TRAJECTORY_EVALUATIONS,
    DistillationCounts,
    distillation_counts,
    guided_step_operations,
)
from .zoo.published import PUBLISHED_MODELS

MODELS = ("stable_diffusion", "sdxl", "stable_diffusion_3", "stable_diffusion_3.5", "sana", "pixart_sigma", "flux")
"""Those that can have a Diamond Map."""
GB = 10**9
HOUR = 3600
CACHED_BYTES = 2
"""Of a number of a cached row, with `--cache_dtype float16` and a base in half precision."""
MEASURED = (
    ("H100", "flux", 512, 1, 0.23),
    ("H100", "flux", 512, 4, 0.67),
    ("H100", "sdxl", 1024, 1, 0.43),
    ("H200", "sana_sprint", 1024, 1, 0.27),
    ("H200", "sana_sprint", 1024, 4, 0.63),
    ("H200", "sana_sprint", 1024, 16, 2.55),
)
"""Card, model, pixels, particles and seconds of a `pathwise` step in bfloat16, as docs/hardware.md has them."""


@dataclass(frozen=True)
class Run:
    """A run of the trainer with `--loss trajectories --cache_trajectories` on samples of the teacher.

    Attributes:
        captions: rows that are cached.
        updates: `--max_train_steps`.
        batch_size: observations of an update in one process, `--train_batch_size` times accumulated batches.
        rows_at_once: `--train_batch_size`: observations that are held at once.
        teacher_steps: `--teacher_num_inference_steps`.
        processes: GPUs.
        checkpointing: whether the run has `--gradient_checkpointing`.
        form: of the frozen base, one of `FORMS`.
    """

    captions: int
    updates: int
    batch_size: int
    rows_at_once: int
    teacher_steps: int
    processes: int = 1
    checkpointing: bool = True
    form: str = "bfloat16"


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes:
        name: for the reader.
        rows: in all processes.
        row_operations: floating-point operations of a row.
        hours: by the clock.
    """

    name: str
    rows: int
    row_operations: float
    hours: float


def stages(
    counts: DistillationCounts,
    run: Run,
    teraflops: float,
    rows_per_second: float | None = None,
    updates_per_second: float | None = None,
) -> list[Stage]:
    """Drawing, following and learning, with their hours.

    Args:
        teraflops: operations a second that a GPU sustains, in 10^12, where a stage's speed is not measured.
        rows_per_second: cached rows that one process was measured to make a second; None to estimate it.
        updates_per_second: the same of updates.
    """
    evaluation = counts.guided_rows * counts.forward
    drawn, followed = run.teacher_steps * evaluation, TRAJECTORY_EVALUATIONS * evaluation
    learnt = PAIR * (counts.update + (counts.forward if run.checkpointing else 0))
    observations = run.updates * run.batch_size * run.processes

    def hours(rows: int, operations: float) -> float:
        return rows * operations / (run.processes * teraflops * 1e12) / HOUR

    caching = [hours(run.captions, operations) for operations in (drawn, followed)]
    if rows_per_second is not None:
        # The trainer's bar counts both of a row.
        together = run.captions / (run.processes * rows_per_second) / HOUR
        caching = [together * operations / (drawn + followed) for operations in (drawn, followed)]
    learning = hours(observations, learnt) if updates_per_second is None else run.updates / updates_per_second / HOUR
    return [
        Stage("the teacher's samples", run.captions, drawn, caching[0]),
        Stage("its trajectories", run.captions, followed, caching[1]),
        Stage("updates", observations, learnt, learning),
    ]


def disk_bytes(counts: DistillationCounts, captions: int) -> int:
    """Of the cache: an observation, two trajectories of it, and the features of its caption."""
    states = 1 + PAIR * (INNER_STEPS + 1)
    return captions * CACHED_BYTES * (states * counts.latents + counts.features)


def rank_bytes(counts: DistillationCounts, run: Run, shards: int = 1) -> dict[str, float]:
    """What a process holds on its device while it trains, by what it is; captions and images are encoded by then.

    Args:
        shards: processes that FSDP divides the weights over; 1 for DDP.
    """
    held = counts.checkpointed if run.checkpointing else counts.activations
    gradients = TRAINED_BYTES["their gradients"] * counts.trained
    parts = {"base": FORMS[run.form] * counts.network / shards}
    parts |= {name: size * counts.trained / shards for name, size in TRAINED_BYTES.items()}
    # Two blocks are whole at once, one in use and the next on its way.
    parts["blocks that are gathered"] = 0 if shards == 1 else 2 * FORMS[run.form] * counts.largest_block
    # The count has the gradients in it, which do not grow with the rows.
    parts["activations"] = run.rows_at_once * max(held - gradients, 0)
    return parts


def sustained(measured: tuple[str, str, int, int, float]) -> float:
    """Operations a second, in 10^12, of a step of `MEASURED`."""
    _, model, pixels, particles, seconds = measured
    return particles * guided_step_operations(model, pixels) / seconds / 1e12


def plan_distillation(
    model: Annotated[str, typer.Option(help=f"One of {', '.join(MODELS)}.")] = "stable_diffusion",
    pixels: Annotated[int | None, typer.Option(min=64, max=MAX_PIXELS, help="By default the model's own.")] = None,
    captions: Annotated[int, typer.Option(min=1, help="Rows of the cache.")] = 50_000,
    updates: Annotated[int, typer.Option(min=1, help="--max_train_steps of the trainer.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="--train_batch_size of the trainer.")] = 32,
    accumulated: Annotated[int, typer.Option(min=1, help="--gradient_accumulation_steps of the trainer.")] = 1,
    teacher_steps: Annotated[int, typer.Option(min=1, help="--teacher_num_inference_steps of the trainer.")] = 20,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 64,
    processes: Annotated[int, typer.Option(min=1, help="GPUs.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Whether the run has --gradient_checkpointing.")] = True,
    quantize: Annotated[str, typer.Option(help=f"The frozen base's form: {', '.join(FORMS)}.")] = "bfloat16",
    teraflops: Annotated[
        float, typer.Option(min=1, help="That a GPU sustains, for speeds that are not given; see --calibrate.")
    ] = 300.0,
    rows_per_second: Annotated[
        float | None, typer.Option(min=1e-6, help="Of one GPU, as the trainer's bar 'Encoding' says.")
    ] = None,
    updates_per_second: Annotated[
        float | None, typer.Option(min=1e-6, help="As the trainer's bar 'Steps' says.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Print what measured steps sustained, in place of a plan.")
    ] = False,
) -> None:
    """Counts what a run of the trainer computes and holds, and says how long it takes at a speed."""
    console = Console(width=140)
    if calibrate:
        table = text_table("card", "model", "pixels", "particles", "seconds", "teraFLOP/s")
        for step in MEASURED:
            table.add_row(*map(str, step), f"{sustained(step):.0f}")
        console.print(table)
        return
    check_choice("--model", model, MODELS)
    check_choice("--quantize", quantize, tuple(FORMS))
    counts = distillation_counts(model, pixels or PUBLISHED_MODELS[model].pixels, rank)
    run = Run(
        captions, updates, batch_size * accumulated, batch_size, teacher_steps, processes, checkpointing, quantize
    )
    console.print(_hours(stages(counts, run, teraflops, rows_per_second, updates_per_second)))
    console.print(f"The cache takes {disk_bytes(counts, captions) / GB:.1f} GB on the disk.")
    console.print(_memory(counts, run))


def _hours(found: list[Stage]) -> Table:
    table = text_table("stage", "rows", "teraFLOP a row", "hours")
    for stage in found:
        table.add_row(stage.name, f"{stage.rows:,}", f"{stage.row_operations / 1e12:.2f}", f"{stage.hours:.2f}")
    table.add_row("in all", "", "", f"{sum(stage.hours for stage in found):.2f}")
    return table


def _memory(counts: DistillationCounts, run: Run) -> Table:
    """Gigabytes of a process, and what has left it when training begins."""
    columns = dict(_ways(counts, run))
    table = text_table("GB of a process", *columns)
    for name in next(iter(columns.values())):
        table.add_row(name, *(f"{parts[name] / GB:.2f}" for parts in columns.values()))
    table.add_row("in all", *(f"{sum(parts.values()) / GB:.2f}" for parts in columns.values()))
    left = 2 * counts.text_encoders + 4 * counts.autoencoder
    table.add_row("text encoders and autoencoder, until the rows are cached", *[f"{left / GB:.2f}"] * len(columns))
    return table


def _ways(counts: DistillationCounts, run: Run) -> Iterator[tuple[str, dict[str, float]]]:
    yield "DDP, or one GPU", rank_bytes(counts, run)
    if run.processes > 1 and run.form == "bfloat16":
        yield f"FSDP over {run.processes}", rank_bytes(counts, run, run.processes)


app = command(plan_distillation)

if __name__ == "__main__":
    app()
