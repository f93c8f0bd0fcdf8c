"""What a step of each loss costs: `python -m benchmarks.loss_costs --help`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from torch import nn

from diamond_diffusers.maps.diamond_map import DiamondMap
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.training.data.miniature import MiniatureWorld
from diamond_diffusers.training.data.trajectories import Trajectories, TrajectoryDraws
from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.options.records import LossOptions
from diamond_diffusers.training.teacher import Teacher

from .command_line import command


@contextmanager
def counted_rows(network: nn.Module) -> Iterator[list[int]]:
    """The rows of every evaluation of a network inside the context."""
    rows: list[int] = []

    def count(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
        rows.append(len(keywords["hidden_states"]))

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


def measure(batch_size: int, num_steps: int) -> list[tuple[str, float, float, float]]:
    """For each loss: its name, evaluations of the network for a row, seconds a step, and seconds as against LSD's.

    One step is a forward and a backward pass of rows that all learn steps, on the embedded model. An evaluation of the
    teacher, under guidance, counts two. Trajectories are kept ones; half as many observations have as many rows.
    """
    torch.manual_seed(0)
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.unload_diamond_map()
    pipe.transformer.requires_grad_(False)
    teacher = Teacher(pipe.family, pipe.defaults)
    diamond_map = DiamondMap(pipe.family, rank=64)
    for parameter in diamond_map.trained_parameters():
        parameter.requires_grad_(True)
    conditions = teacher.conditions(teacher.features([MiniatureWorld()[index].captions for index in range(batch_size)]))
    z = torch.randn(batch_size, 16, 32)
    figures = {}
    half = conditions.rows(torch.arange(batch_size // TrajectoryDraws().num_trajectories))
    kept = Trajectories.draw(pipe.family, z[: batch_size // TrajectoryDraws().num_trajectories], half)
    for name in LOSSES.names():
        loss = LossOptions(name, diagonal_fraction=0.0).build()
        learnt = (kept, half) if loss.needs_trajectories else (z, conditions)
        with counted_rows(pipe.transformer) as rows:
            loss(diamond_map, *learnt, 0)[0].backward()
        start = time.perf_counter()
        for _ in range(num_steps):
            loss(diamond_map, *learnt, 0)[0].backward()
        figures[name] = (sum(rows) / batch_size, (time.perf_counter() - start) / num_steps)
    unit = figures["lagrangian"][1]
    return [(name, rows, seconds, seconds / unit) for name, (rows, seconds) in figures.items()]


def benchmark_losses(
    batch_size: Annotated[int, typer.Option(min=2, help="Rows of a step.")] = 32,
    num_steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 5,
) -> None:
    """Prints the cost of a step of each loss as a table."""
    typer.echo("| loss | evaluations a row | seconds a step | relative |\n|---|---:|---:|---:|")
    for name, rows, seconds, relative in measure(batch_size, num_steps):
        typer.echo(f"| {name} | {rows:.0f} | {seconds:.2f} | {relative:.2f} |")


app = command(benchmark_losses)

if __name__ == "__main__":
    app()
