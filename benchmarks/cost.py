"""What one step of reward guidance costs, on models with random weights: `python -m benchmarks.cost --help`."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from diamond_diffusers.alignment.guide import Guide
from diamond_diffusers.alignment.methods.guidance import Guidance
from diamond_diffusers.cli.options import (
    MAX_PIXELS,
    Device,
    ParticleBatchSize,
    positive_numbers,
    text_table,
    usable_device,
    weights_dtype,
)
from diamond_diffusers.evaluation.memory import peak_memory
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline

from .command_line import command
from .counting import GraphMemory, counted
from .zoo.published import PUBLISHED_MODELS
from .zoo.published_parts import SIZES

NUM_STEPS = 4
"""Of a measured run, whose first is not timed."""


@dataclass(frozen=True)
class Workload:
    """What is measured.

    Attributes:
        family: a name in `PUBLISHED_MODELS`.
        size: `tiny` or `full`.
        gradient: of the guidance, as of `Guidance`.
        particle_batch_size: the most particles of one chunk; None for all.
        gradient_checkpointing: whether activations are computed again on the way back.
        pixels: height and width; None for those of the published model.
        device: of the model.
        dtype: of the weights.

    Raises:
        ValueError: there is no such family or size.
    """

    family: str
    size: str = "tiny"
    gradient: str = "pathwise"
    particle_batch_size: int | None = None
    gradient_checkpointing: bool = False
    pixels: int | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.family not in PUBLISHED_MODELS:
            raise ValueError(f"family is {self.family!r}; choose one of {', '.join(PUBLISHED_MODELS)}")
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; choose one of {', '.join(SIZES)}")


@dataclass(frozen=True)
class StepCost:
    """The cost of one guided step of one image.

    Attributes:
        num_particles: of the image.
        forwards: rows through the network; under classifier-free guidance a particle has two.
        backwards: rows back through it.
        decodes: latents brought to images.
        seconds: median over steps.
        graph_bytes: the most that autograd graphs held at once, weights aside.
        peak_bytes: the most memory at once, as `peak_memory` measures it; None where the system does not tell.
    """

    num_particles: int
    forwards: int
    backwards: int
    decodes: int
    seconds: float
    graph_bytes: int
    peak_bytes: int | None


def measure(workload: Workload, particles: Sequence[int]) -> Iterator[StepCost]:
    """Builds the model and measures a guided step for each number of particles, in rising order."""
    published = PUBLISHED_MODELS[workload.family]
    pipe = DiamondMapPipeline.from_pipe(published.build(workload.size, workload.device, workload.dtype))
    pipe.set_progress_bar_config(disable=True)
    arguments = {
        **published.arguments(pipe.pipeline, workload.size, workload.pixels),
        "reward": brightness,
        "reward_prompt": "any",
        "num_inference_steps": NUM_STEPS,
        "output_type": "pt",
        "particle_batch_size": workload.particle_batch_size,
        "gradient_checkpointing": workload.gradient_checkpointing,
    }
    for num_particles in sorted(particles):
        guidance = Guidance(guide=Guide(workload.gradient), num_particles=num_particles)
        yield _measure(pipe, {**arguments, "alignment": guidance}, num_particles)


def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """A reward whose own cost is nothing."""
    return images.mean((1, 2, 3))


def _measure(pipe: DiamondMapPipeline, arguments: dict[str, Any], num_particles: int) -> StepCost:
    """Counts in a first run, which warms up, and times a second one, which nothing watches."""
    counts_after, memory = [(0, 0, 0)], GraphMemory(pipe.family.network_module.parameters())
    with counted(pipe) as counts, memory.watched():

        def count(*step: Any) -> dict[str, Tensor]:
            counts_after.append((counts.network, counts.backward, counts.decoded))
            return {}

        _run(pipe, arguments, count)
    per_step = {tuple(map(int.__sub__, after, before)) for before, after in pairwise(counts_after)}
    if len(per_step) != 1:
        raise RuntimeError(f"steps differ in what they evaluate: {sorted(per_step)}")
    forwards, backwards, decodes = per_step.pop()
    times: list[float] = []

    def read_clock(*step: Any) -> dict[str, Tensor]:
        if pipe.device.type != "cpu":
            torch.accelerator.synchronize(pipe.device)
        times.append(time.perf_counter())
        return {}

    with peak_memory(pipe.device) as peak:
        _run(pipe, arguments, read_clock)
    seconds = median(after - before for before, after in pairwise(times))
    return StepCost(num_particles, forwards, backwards, decodes, seconds, memory.peak, peak.bytes)


def _run(pipe: DiamondMapPipeline, arguments: dict[str, Any], on_step: Any) -> None:
    """Draws one image."""
    pipe(generator=torch.Generator().manual_seed(0), callback_on_step_end=on_step, **arguments)


FamilyName = Annotated[str, typer.Option(help=f"One of {', '.join(PUBLISHED_MODELS)}.")]
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
    workload = Workload(
        family,
        size,
        gradient,
        particle_batch_size,
        gradient_checkpointing,
        pixels,
        device,
        weights_dtype(dtype, device),
    )
    costs = list(measure(workload, counts))
    if as_json:
        settings = {**dataclasses.asdict(workload), "dtype": str(workload.dtype).removeprefix("torch.")}
        typer.echo(json.dumps({**settings, "steps": [dataclasses.asdict(cost) for cost in costs]}, indent=2))
        return
    print_table(costs, on_gpu=not device.startswith("cpu"))


def print_table(costs: list[StepCost], on_gpu: bool) -> None:
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


app = command(benchmark_cost)

if __name__ == "__main__":
    app()
