"""Every method by name, with its defaults, beside plain sampling at few steps: `python -m benchmarks.defaults`.

The embedded model draws images of captions that its reward was trained on, since held-out ones are for judging: the
same captions and noises for each method. Prints one row of a markdown table for each method and number of steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.presets import PRESETS
from diamond_diffusers.cli.options import MAX_COUNT, Device, positive_numbers, usable_device
from diamond_diffusers.miniature.grammar import sample_training_caption

from .command_line import command

NAMES = tuple(name for name in (*METHODS.names(), *PRESETS.names()) if name != "none")
COLUMNS = "| method | steps | reward | above plain | standard error | evaluations | backward passes |"


@dataclass(frozen=True)
class Gain:
    """What a method has won over plain sampling in as many steps.

    Attributes:
        method: its name.
        steps: of the run.
        reward: mean of the images returned.
        above_plain: mean of the differences to the plain images of the same captions and noises.
        standard_error: of that mean.
        evaluations: of the network, for an image.
        backward_passes: likewise.
    """

    method: str
    steps: int
    reward: float
    above_plain: float
    standard_error: float
    evaluations: float
    backward_passes: float

    def row(self) -> str:
        figures = f"{self.reward:.1f} | {self.above_plain:+.1f} | {self.standard_error:.1f}"
        return f"| `{self.method}` | {self.steps} | {figures} | {self.evaluations:.0f} | {self.backward_passes:.0f} |"


def measure(
    names: Sequence[str] = NAMES, steps: Sequence[int] = (4, 6, 12), count: int = 50, device: str = "cpu"
) -> Iterator[Gain]:
    """The gains of methods, one after the other, on `count` captions."""
    pipe = DiamondMapPipeline.from_pretrained().to(device)
    pipe.set_progress_bar_config(disable=True)
    source = random.Random(7)
    captions = [sample_training_caption(source).text for _ in range(count)]

    def rewards(name: str, num_steps: int) -> tuple[Tensor, float, float]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        options = {"reward": "miniature", "num_inference_steps": num_steps, "output_type": "pt"}
        out = pipe(captions, alignment=name, generator=generators, **options)
        cost = out.cost
        return torch.as_tensor(out.rewards).double(), cost.network_evaluations / count, cost.backward_passes / count

    plain = {num_steps: rewards("none", num_steps)[0] for num_steps in steps}
    for name in names:
        for num_steps in steps:
            drawn, evaluations, backward_passes = rewards(name, num_steps)
            gains = drawn - plain[num_steps]
            error = (gains.std() / count**0.5).item()
            yield Gain(name, num_steps, drawn.mean().item(), gains.mean().item(), error, evaluations, backward_passes)


def benchmark_defaults(
    methods: Annotated[str, typer.Option(help="Names, separated by commas.")] = ",".join(NAMES),
    steps: Annotated[str, typer.Option(help="Numbers of steps, separated by commas.")] = "4,6,12",
    captions: Annotated[int, typer.Option(min=2, max=MAX_COUNT, help="How many.")] = 50,
    device: Device = "cpu",
) -> None:
    """Prints the rewards of every method by name, with its defaults, beside plain sampling in as many steps."""
    counts = positive_numbers("--steps", steps, int, "4,6,12")
    typer.echo(f"{COLUMNS}\n|---|--:|--:|--:|--:|--:|--:|")
    for gain in measure(methods.split(","), counts, captions, usable_device(device)):
        typer.echo(gain.row())


app = command(benchmark_defaults)

if __name__ == "__main__":
    app()
