"""The command `diamond-diffusers benchmark-cost`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .options import MAX_PIXELS, Device, ParticleBatchSize, named_dtype, positive_numbers, text_table, usable_device

if TYPE_CHECKING:
    from ..evaluation.cost_benchmark import StepCost

FamilyName = Annotated[str, typer.Option(help="sana_sprint, flux, stable_diffusion_3, sdxl or stable_diffusion.")]
Size = Annotated[str, typer.Option(help="'full', as published, or 'tiny'.")]
Particles = Annotated[str, typer.Option(help="Particles of an image; numbers, separated by commas.")]
Gradient = Annotated[str, typer.Option(help="'pathwise' differentiates the network too, 'isotropic' does not.")]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Compute activations again on the backward pass.")
]
Pixels = Annotated[
    int | None, typer.Option(min=1, max=MAX_PIXELS, help="Height and width; by default the published model's.")
]
DType = Annotated[str, typer.Option(help="float32, bfloat16 or float16; 'auto' is bfloat16 on a GPU, else float32.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")]


def benchmark_cost(
    family: FamilyName,
    size: Size = "tiny",
    particles: Particles = "1,4,16",
    gradient: Gradient = "pathwise",
    particle_batch_size: ParticleBatchSize = None,
    gradient_checkpointing: GradientCheckpointing = False,
    pixels: Pixels = None,
    dtype: DType = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measures what a step of reward guidance costs, on a model of random weights."""
    counts = positive_numbers("--particles", particles, int, "1,4,16")
    device = usable_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    weights_dtype = named_dtype(dtype)

    from ..evaluation.cost_benchmark import Workload, measure

    workload = Workload(
        family, size, gradient, particle_batch_size, gradient_checkpointing, pixels, device, weights_dtype
    )
    costs = list(measure(workload, counts))
    if as_json:
        settings = {**dataclasses.asdict(workload), "dtype": dtype}
        typer.echo(json.dumps({**settings, "steps": [dataclasses.asdict(cost) for cost in costs]}, indent=2))
        return
    _print_table(costs, on_gpu=device.startswith("cuda"))


def _print_table(costs: list[StepCost], on_gpu: bool) -> None:
    memory = "peak memory, MiB" if on_gpu else "process, MiB"
    table = text_table("particles", "forwards", "backwards", "decodes", "seconds", "graphs, MiB", memory)
    for column in table.columns:
        column.justify = "right"
    for cost in costs:
        table.add_row(
            str(cost.num_particles),
            str(cost.forwards),
            str(cost.backwards),
            str(cost.decodes),
            f"{cost.seconds:.3f}",
            f"{cost.graph_bytes / 2**20:.1f}",
            "–" if cost.peak_bytes is None else f"{cost.peak_bytes / 2**20:.0f}",
        )
    Console().print(table)
