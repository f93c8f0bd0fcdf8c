"""What each choice of a distillation is worth: `python -m benchmarks.distillation_levers --help`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from diamond_diffusers.cli.options import MAX_COUNT
from diamond_diffusers.files.output import prepare_folder
from diamond_diffusers.maps.map_config import CONFIG_NAME, read_map_config
from diamond_diffusers.pipelines.map_accuracy import LawAccuracy, MapAccuracy

from .command_line import command

TRAINER = "diamond_diffusers.training.distill"
RECIPE = Path("examples/training/miniature.yaml")
BATCH_SIZE = 48
MAX_ROWS = 65_536
"""Scenes of the miniature's world."""


@dataclass(frozen=True)
class Stage:
    """A part of a run, which begins with the map of the part before.

    Attributes:
        share: of the updates.
        options: of the trainer, beside the shared ones.
        share_of_rows: of the different rows that are trained on.
    """

    share: float = 1.0
    options: tuple[str, ...] = ()
    share_of_rows: float = 1.0


LEVERS: dict[str, tuple[Stage, ...]] = {
    "as the recipe has it": (Stage(),),
    "`--guidance_scale 3`": (Stage(options=("--guidance_scale", "3")),),
    "`--num_trajectories 4`, half the rows": (
        Stage(options=("--num_trajectories", "4", "--train_batch_size", str(BATCH_SIZE // 2))),
    ),
    "`--regression_weight 0`": (Stage(options=("--regression_weight", "0")),),
    "`--regression_weight 0.5`": (Stage(options=("--regression_weight", "0.5")),),
    "`--rank 16`": (Stage(options=("--rank", "16")),),
    "`--rank 160`, whole matrices": (Stage(options=("--rank", "160")),),
    "`--learning_rate 5e-4`": (Stage(options=("--learning_rate", "5e-4")),),
    "`--learning_rate 4e-3`": (Stage(options=("--learning_rate", "4e-3")),),
    "`--pure_noise_share 0.5`": (Stage(options=("--pure_noise_share", "0.5")),),
    "`--condition_on_observation`": (Stage(options=("--condition_on_observation",)),),
    "a flow map of the base first": (Stage(0.5, ("--pure_noise_share", "1")), Stage(0.5)),
    "the Lagrangian loss at the end": (Stage(0.75), Stage(0.25, ("--loss", "lagrangian"))),
    "twice the updates of half the rows": (Stage(2.0, ("--train_batch_size", str(BATCH_SIZE // 2))),),
    "twice the updates": (Stage(2.0),),
    "a quarter of the rows": (Stage(share_of_rows=0.25),),
}
"""What is changed, one thing at a time, by its name in the table."""


@dataclass(frozen=True)
class Levers:
    """A comparison of changes to the recipe of the embedded model's map.

    All runs have as many updates of as many rows, but for the last three, and the same held-out observations.

    Args:
        folder: of all runs. What one has computed of rows, others read; one that is complete is not run again.
        num_updates: of the recipe.
        num_rows: different rows that are trained on.
        num_observations: held out, at each of five levels.
        num_samples: look-aheads of each observation.
    """

    folder: Path
    num_updates: int
    num_rows: int
    num_observations: int
    num_samples: int

    def accuracy(self, number: int, stages: Sequence[Stage]) -> MapAccuracy:
        """How near the map of the last stage is to its teacher, after the stages that are still to be run."""
        previous: Path | None = None
        for place, stage in enumerate(stages):
            folder = self.folder / f"lever-{number}-{place}"
            is_last = place + 1 == len(stages)
            if (folder / CONFIG_NAME).exists():
                self._check_complete(folder, stage, is_last)
            else:
                self._run(folder, stage, previous, is_last)
            previous = folder
        assert previous is not None, "a lever has stages"
        found = MapAccuracy.read(read_map_config(previous)["training"])
        assert found is not None, "the trainer has measured it"
        return found

    def _updates(self, stage: Stage) -> int:
        return max(1, round(stage.share * self.num_updates))

    def _rows(self, stage: Stage) -> int:
        return max(1, round(stage.share_of_rows * self.num_rows))

    def _check_complete(self, folder: Path, stage: Stage, is_last: bool) -> None:
        """Raises a `ValueError` where a complete run is not of this comparison, but of an earlier one in the folder."""
        facts = read_map_config(folder)["training"]
        expected: dict[str, int] = {"steps": self._updates(stage), "rows": self._rows(stage)}
        found = {name: facts.get(name) for name in expected}
        judged = MapAccuracy.read(facts) if is_last else None
        if judged is not None:
            expected |= {"observations": self.num_observations, "samples": self.num_samples}
            found |= {"observations": judged.num_observations, "samples": judged.num_samples}
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(
                    f"--output {self.folder} holds {folder.name} of another comparison, with {found[name]} {name} in "
                    f"place of {value}; name another folder, or give the options of then"
                )

    def _run(self, folder: Path, stage: Stage, previous: Path | None, is_last: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shared = self.folder / "cache"
        shared.mkdir(exist_ok=True)
        if not (folder / "cache").exists():
            (folder / "cache").symlink_to(shared.resolve(), target_is_directory=True)
        shared_options = {
            "config": RECIPE,
            "output_dir": folder,
            "max_train_samples": self._rows(stage),
            "max_train_steps": self._updates(stage),
            "report_to": "none",
            "resume_from_checkpoint": "latest",
        }
        given = [str(text) for name, value in shared_options.items() for text in (f"--{name}", value)]
        if previous is not None:
            given += ["--initial_map", str(previous)]
        if "lagrangian" in stage.options:
            given += ["--no-cache_trajectories", "--cache_latents"]
        if is_last:
            given += ["--validation_metrics", "--validation_steps", str(MAX_COUNT)]
            given += ["--num_validation_observations", str(self.num_observations)]
            given += ["--num_validation_samples", str(self.num_samples)]
        subprocess.run([sys.executable, "-m", TRAINER, *given, *stage.options], check=True)


def table(found: dict[str, MapAccuracy]) -> str:
    """The figures of all maps, in Markdown."""
    levels = next(iter(found.values())).levels
    heads = [f"t = {level:g}" for level in levels]
    lines = [["", *heads], ["---", *["---:"] * len(levels)]]
    shown: set[tuple[str, ...]] = set()
    for name, accuracy in found.items():
        for sampler, cells in accuracy.by_sampler(_cell).items():
            # The teacher's own figures are those of other runs too, unless it is another teacher.
            if (sampler, *cells) not in shown:
                lines.append([f"{name}: {sampler}", *cells])
            shown.add((sampler, *cells))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(law: LawAccuracy) -> str:
    if law.energy_distance is None or law.deviation_ratio is None:
        return "–"
    return f"{law.energy_distance:.2f} ({law.deviation_ratio:.2f})"


def numbers_of(only: str) -> list[int]:
    """The numbers of changes that `--only` names, ascending."""
    words = [word.strip() for word in only.split(",")]
    if not all(word.isdecimal() and int(word) < len(LEVERS) for word in words):
        raise ValueError(f"--only is {only!r}; give numbers from 0 to {len(LEVERS) - 1}, separated by commas")
    return sorted({int(word) for word in words})


def benchmark_levers(
    output: Annotated[Path, typer.Option(help="Folder of the runs, which go on where they were ended.")] = Path(
        "out/levers"
    ),
    steps: Annotated[int, typer.Option(min=4, help="Updates of a run.")] = 300,
    rows: Annotated[int, typer.Option(min=BATCH_SIZE, max=MAX_ROWS, help="Different rows that are trained on.")] = 4096,
    observations: Annotated[int, typer.Option(min=2, help="Held-out observations at each of five levels.")] = 16,
    samples: Annotated[int, typer.Option(min=2, help="Look-aheads of each of them.")] = 16,
    only: Annotated[str | None, typer.Option(help="Numbers of the changes, from 0, separated by commas.")] = None,
) -> None:
    """Distils the embedded model's map again and again, with one choice changed at a time, and prints how near it gets.

    The table gives the energy distance to the teacher's look-aheads, and in brackets their relative deviation.
    """
    chosen = list(range(len(LEVERS))) if only is None else numbers_of(only)
    prepare_folder(output, "--output")
    levers = Levers(output, steps, rows, observations, samples)
    names = list(LEVERS)
    typer.echo(table({names[number]: levers.accuracy(number, LEVERS[names[number]]) for number in chosen}))


app = command(benchmark_levers)

if __name__ == "__main__":
    app()
