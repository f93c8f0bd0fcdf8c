"""The cost of guided steps at published sizes, a line of JSON each: `python -m benchmarks.full_size --help`."""

from __future__ import annotations

import dataclasses
import gc
import json
from dataclasses import dataclass
from typing import Any

import torch
import typer

from diamond_diffusers.cli.options import Device, usable_device, weights_dtype

from .command_line import command
from .cost import DType, Size, Workload, measure


@dataclass(frozen=True)
class Row:
    """A model to measure, with the numbers of particles of an image."""

    family: str
    particles: tuple[int, ...]
    particle_batch_size: int = 4
    pixels: int | None = None
    gradient_checkpointing: bool = False


ROWS = (
    Row("sana_sprint", (1, 4, 16)),
    Row("sdxl", (1, 4)),
    Row("stable_diffusion_3", (1, 4)),
    Row("flux", (1, 4), pixels=512),
    Row("flux", (2,), 1, 1024, gradient_checkpointing=True),
)


def benchmark_full_size(size: Size = "full", dtype: DType = "auto", device: Device = "auto") -> None:
    """Measures guided steps of the published architectures with random weights, one line for each number of particles.

    A model that cannot be measured has a line that says why, and the others follow.
    """
    device = usable_device(device)
    precision = weights_dtype(dtype, device)
    for row in ROWS:
        pixels = row.pixels if size == "full" else None
        workload = Workload(
            row.family,
            size,
            particle_batch_size=row.particle_batch_size,
            gradient_checkpointing=row.gradient_checkpointing,
            pixels=pixels,
            device=device,
            dtype=precision,
        )
        settings = {**dataclasses.asdict(workload), "dtype": str(precision).removeprefix("torch.")}
        try:
            for cost in measure(workload, row.particles):
                _print({**settings, **dataclasses.asdict(cost)})
        except (RuntimeError, ValueError) as error:
            _print({**settings, "error": f"{type(error).__name__}: {error}"})
        # The next model needs the memory.
        gc.collect()
        if device != "cpu":
            torch.accelerator.empty_cache()


def _print(line: dict[str, Any]) -> None:
    typer.echo(json.dumps(line))


app = command(benchmark_full_size)

if __name__ == "__main__":
    app()
