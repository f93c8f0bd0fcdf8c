"""How the commands bring the terms of a reward to a common unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .options import MAX_COUNT

if TYPE_CHECKING:
    from ..pipelines.calibration import Calibration
    from ..pipelines.pipeline import DiamondMapPipeline
    from ..rewards import Reward

CALIBRATION = "calibration.json"

Calibrate = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=MAX_COUNT,
        help="Draw so many plain samples first, and measure each term of the reward in its deviations over them.",
    ),
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(
        "--calibration", exists=True, dir_okay=False, help="A calibration.json of an earlier run, in place of samples."
    ),
]


def read_calibration(calibrate: int | None, file: Path | None, reward: Reward | None) -> Calibration | None:
    """The calibration that a file holds, checked before anything large is loaded; None where there is no file.

    Raises:
        ValueError: samples are asked for too, there is no reward to calibrate, or the file is of another reward.
    """
    for option, given in (("--calibrate", calibrate), ("--calibration", file)):
        if given is not None and reward is None:
            raise ValueError(f"{option} is {given}, but there is no reward to calibrate; name one with --reward")
    if file is None or reward is None:
        return None
    if calibrate is not None:
        raise ValueError(f"--calibrate is {calibrate}, but --calibration {file} needs no samples; drop one of them")
    from ..pipelines.calibration import Calibration

    found = Calibration.load(file)
    found.apply(reward)
    return found


def draw_calibration(
    pipe: DiamondMapPipeline, texts: Sequence[str], reward: Reward, num_samples: int, seed: int, **arguments: Any
) -> Calibration:
    """The calibration of a reward by plain samples, drawn under the name of what is done."""
    from ..families.compat import progress_bar
    from ..pipelines.calibration import calibrate

    with progress_bar(pipe.pipeline, desc="calibration"):
        return calibrate(pipe, texts, reward, num_samples, seed=seed, **arguments)


def print_calibration(calibration: Calibration) -> None:
    """Prints the unit of each term, and what it has cost to find out."""
    console = Console()
    for name, term in calibration.terms.items():
        text = f"calibration: {name} is {term.mean:.4g}, with a deviation of {term.standard_deviation:.3g}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def recorded(calibration: Calibration, file: Path) -> Mapping[str, Any]:
    """What a record says of a calibration, and how it is used again."""
    return {
        "reward": calibration.reward,
        "num_samples": calibration.num_samples,
        "seed": calibration.seed,
        "terms": calibration.statistics(),
        "again": f"--calibration {file}",
    }
