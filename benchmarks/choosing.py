"""What the cells of `alignment="auto"` rest on: `python -m benchmarks.choosing --help`.

Candidates of each cell draw the same captions from the same seeds, at the same cost. Those of the training grammar are
for choosing, held-out ones for the check that what was chosen is not behind the best.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from diamond_diffusers.alignment.automatic import BUDGETS, MODELS, REWARDS, Cell, method_of
from diamond_diffusers.alignment.base import Method
from diamond_diffusers.alignment.budget import cost_of_image, fit_to_budget
from diamond_diffusers.alignment.law import Law, ScoreModel
from diamond_diffusers.alignment.methods.none import NoAlignment
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.alignment.random_source import RandomSource
from diamond_diffusers.cli.options import text_table
from diamond_diffusers.core.flow_map import flow_map_of
from diamond_diffusers.core.levels import Level
from diamond_diffusers.core.model import Conditions
from diamond_diffusers.evaluation.benchmark.prompts import miniature_suite
from diamond_diffusers.evaluation.files import plain, write_json
from diamond_diffusers.evaluation.scoring.statistics import NORMAL_QUANTILE
from diamond_diffusers.files.foreign import read_json
from diamond_diffusers.files.output import prepare_folder
from diamond_diffusers.miniature.grammar import sample_training_caption
from diamond_diffusers.miniature.judge import judge
from diamond_diffusers.pipelines.call import Call, starting_particles
from diamond_diffusers.pipelines.pipeline import DiamondMapPipeline
from diamond_diffusers.rewards import MiniatureReward
from diamond_diffusers.transitions.sampled_model import SampledModel

from .choosing_candidates import candidates_of
from .command_line import command

STEPS = {"base": 12, "few_step": 4, "both": 4, "map": 12}
"""Of the sampler of each model."""
EVALUATIONS = {"small": 4, "large": 16}
"""For each step; at none of them is `LARGE_BUDGET`, where the classes meet."""
SCORES = {"none": 4, "small": 4, "large": 8}
"""The most of a dear reward."""
MOST_PLAIN = 4
"""Plain images that a method may cost without a budget."""
CHUNK = 8
"""Captions of a file."""


class FlowMapView(SampledModel):
    """The flow map that the embedded model's Diamond Map contains, as a few-step model.

    Args:
        model: with a Diamond Map.
        has_denoiser: whether there is a posterior mean, which the base of the map gives as a score model.
    """

    has_flow_map = True
    predicts_mean = False
    has_denoiser = False

    def __init__(self, model: SampledModel, has_denoiser: bool = False) -> None:
        self.model, self.name, self.has_denoiser = model, model.name, has_denoiser

    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        return self.flow_map(x, noise_to_signal, 0.0, conditions)

    def flow_map(
        self, x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        def inner_map(xbar: Tensor, s: Level, r: Level, y: Tensor, level: Level) -> Tensor:
            return self.model.diamond_map(xbar, s, r, y, level, conditions)

        return flow_map_of(inner_map)(x, noise_to_signal, next_noise_to_signal)

    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        return self.model.decode(z, conditions, preview)


@dataclass(frozen=True)
class Row:
    """A candidate at a budget: figures of each caption.

    Attributes:
        rewards: of the images returned.
        right: by the judge, 0 or 1.
        evaluations: of the network, for an image; a backward pass counts 2.
        scores: by the reward, for an image.
    """

    rewards: tuple[float, ...]
    right: tuple[float, ...]
    evaluations: int
    scores: int

    def joined(self, other: Row) -> Row:
        """The figures of more captions."""
        return replace(self, rewards=(*self.rewards, *other.rewards), right=(*self.right, *other.right))


class Bench:
    """Draws rows on the embedded model as one kind of model.

    Args:
        model: a key of `MODELS`.
    """

    def __init__(self, model: str) -> None:
        self.kind, self.reward = model, MiniatureReward()
        self.pipe = DiamondMapPipeline.from_pretrained()
        if model == "base":
            self.pipe.unload_diamond_map()

    def law(self, call: Call) -> Law:
        """What is sampled, within `call.active()`."""
        family, conditions, scores = call.family, call.conditions, None
        model: SampledModel = family
        if self.kind in ("few_step", "both"):
            model = FlowMapView(family, self.kind == "both")
            scores = ScoreModel(family, conditions) if self.kind == "both" else None
            conditions = replace(conditions, negative_features=None)
        return Law(model, conditions, call.texts, self.reward, self.reward.default_reward_scale or 1.0, scores)

    def drawn(self, candidate: Method | str, cell: Cell, captions: Sequence[str], first_seed: int) -> Row:
        """The row of a candidate on captions, each with a seed of its own.

        Raises:
            ValueError: the model or the budget does not allow the candidate.
        """
        generators = [torch.Generator().manual_seed(first_seed + i) for i in range(len(captions))]
        call = self.pipe.prepare(list(captions), generator=generators, num_inference_steps=STEPS[self.kind])
        with call.active(), torch.no_grad():
            law, levels = self.law(call), call.levels()
            method = sized(as_method(candidate, law.model).resolve(law.model), law, levels, cell)
            source = RandomSource(generators, len(captions))
            result = method.run(law, starting_particles(call, method, levels[0], source), levels, source)
            chosen = result.select(method.default_selection, source)
            assert result.rewards is not None and result.images is not None, "there is a reward"
            rewards = result.rewards.gather(1, chosen)[:, 0].tolist()
            images = result.images[torch.arange(len(chosen)), chosen[:, 0]].float()
            cost = cost_of_image(method, law, levels)
        right = judge(images, list(captions)).float().tolist()
        return Row(tuple(rewards), tuple(right), cost.equivalent_evaluations, cost.reward_calls)


def sized(method: Method, law: Law, levels: Sequence[float], cell: Cell) -> Method:
    """A method at the budget of a cell.

    Raises:
        ValueError: it does not fit into it.
    """
    most_scores = SCORES[cell.budget] if cell.reward == "dear" else None
    if cell.budget != "none":
        return fit_to_budget(method, law, levels, EVALUATIONS[cell.budget] * (len(levels) - 1), most_scores)
    plain = cost_of_image(NoAlignment().resolve(law.model), law, levels).equivalent_evaluations
    cost = cost_of_image(method, law, levels)
    if cost.equivalent_evaluations > MOST_PLAIN * plain or (most_scores and cost.reward_calls > most_scores):
        raise ValueError(f"an image of it takes {cost.equivalent_evaluations} evaluations, {cost.reward_calls} scores")
    return method


def captions_of(split: str, count: int) -> list[str]:
    """Captions to choose on, of the grammar that the reward was trained on, or held-out ones to check by."""
    if split == "held_out":
        return [prompt.text for prompt in miniature_suite().first(count)]
    source = random.Random(11)
    return [sample_training_caption(source).text for _ in range(count)]


def path_of(folder: Path, cell: Cell, name: str, split: str, start: int) -> Path:
    """The file of a chunk of captions; cells that differ in the reward alone share it unless that is dear."""
    budget = f"dear_{cell.budget}" if cell.reward == "dear" else cell.budget
    return folder / cell.model / budget / name / f"{split}_{start}.json"


def jobs_of(cells: Sequence[Cell], splits: Sequence[str], count: int) -> Iterator[tuple[Cell, str, str, int]]:
    """What is to be drawn: a cell, a candidate's name, a split, and where its chunk starts."""
    for split in splits:
        for start in range(0, count, CHUNK):
            for cell in cells:
                for name in candidates_of(cell):
                    yield cell, name, split, start


def draw_all(
    cells: Sequence[Cell],
    splits: Sequence[str],
    count: int,
    folder: Path,
    shard: tuple[int, int] = (0, 1),
    on_file: Callable[[Path], None] | None = None,
) -> None:
    """Draws what `folder` does not hold yet, of every `shard[1]`-th chunk the `shard[0]`-th."""
    captions = {split: captions_of(split, count) for split in splits}
    index, of_all = shard
    bench: Bench | None = None
    paths: set[Path] = set()
    for cell, name, split, start in jobs_of(cells, splits, count):
        path = path_of(folder, cell, name, split, start)
        if path in paths:
            continue
        paths.add(path)
        if len(paths) % of_all != index or path.exists():
            continue
        if bench is None or bench.kind != cell.model:
            bench = Bench(cell.model)
        chunk = captions[split][start : start + CHUNK]
        prepare_folder(path.parent)
        try:
            drawn: dict[str, Any] = asdict(bench.drawn(candidates_of(cell)[name], cell, chunk, start))
        except ValueError as refusal:
            drawn = {"refused": str(refusal)}
        write_json(path, {**facts_of(cell, name, chunk), **drawn})
        if on_file is not None:
            on_file(path)


def facts_of(cell: Cell, name: str, captions: Sequence[str]) -> dict[str, Any]:
    """What a file says of its chunk, besides the figures."""
    return {"method": plain(as_method(candidates_of(cell)[name])), "captions": captions}


def rows_of(cell: Cell, split: str, count: int, folder: Path) -> dict[str, Row]:
    """The rows of a cell's candidates that are drawn whole; those that the model or the budget refuses are left out.

    Raises:
        ValueError: the folder holds rows of other captions, or of other settings of a candidate.
    """
    captions, rows = captions_of(split, count), {}
    for name in candidates_of(cell):
        row: Row | None = None
        for start in range(0, count, CHUNK):
            path = path_of(folder, cell, name, split, start)
            found = read_json(path, "remove it, so that it is drawn again") if path.exists() else {"refused": ""}
            if "refused" in found:
                row = None
                break
            for fact, value in facts_of(cell, name, captions[start : start + CHUNK]).items():
                if found.pop(fact) != value:
                    raise ValueError(f"{path} is of another {fact}; remove it, or name another --output")
            part = Row(**found)
            row = part if row is None else row.joined(part)
        if row is not None:
            rows[name] = row
    return rows


def difference(row: Row, other: Row) -> tuple[float, float]:
    """Mean of the paired differences of rewards, and half the width of its 95 % interval."""
    gains = torch.tensor(row.rewards, dtype=torch.float64) - torch.tensor(other.rewards, dtype=torch.float64)
    return gains.mean().item(), NORMAL_QUANTILE * (gains.std() / len(gains) ** 0.5).item()


def chosen_name(cell: Cell) -> str:
    """The candidate that stands in the table."""
    chosen = as_method(method_of(cell))
    return next(name for name, form in candidates_of(cell).items() if as_method(form) == chosen)


def verdict(cell: Cell, rows: dict[str, Row]) -> str:
    """Whether the method of the table is within one interval of the best."""
    name = chosen_name(cell)
    if name not in rows:
        return f"{name} is not drawn"
    best = max(rows, key=lambda each: sum(rows[each].rewards))
    behind, width = difference(rows[name], rows[best])
    return f"{name} is {'within' if behind + width >= 0 else 'NOT WITHIN'} one interval of {best}: {behind:+.2f}"


Cells = Annotated[
    str, typer.Option(help="Cells of the table, such as base/black_box/small, or the beginnings of some.")
]
Splits = Annotated[str, typer.Option(help="choosing, held_out, or both, separated by a comma.")]
Captions = Annotated[int, typer.Option(min=2, max=300, help="Of each split.")]
Shard = Annotated[str, typer.Option(help="Which share of the work this process takes: 0/2 or 1/2 of two.")]
Output = Annotated[Path, typer.Option(help="Folder of the finished chunks, with which a run goes on.")]
ReportOnly = Annotated[bool, typer.Option("--report-only", help="Draw nothing, and print what the folder holds.")]


ALL_CELLS = ",".join(MODELS)


def benchmark_choosing(
    cells: Cells = ALL_CELLS,
    splits: Splits = "choosing,held_out",
    captions: Captions = 48,
    shard: Shard = "0/1",
    output: Output = Path("out/choosing"),
    report_only: ReportOnly = False,
) -> None:
    """Prints, for cells of `alignment="auto"`, the rewards of their candidates at equal cost."""
    wanted, parts = cells_named(cells), splits.split(",")
    for part in parts:
        if part not in ("choosing", "held_out"):
            raise ValueError(f"--splits is {splits!r}; give choosing, held_out, or both separated by a comma")
    index, slash, of_all = shard.partition("/")
    if not (slash and index.isdecimal() and of_all.isdecimal() and int(index) < int(of_all)):
        raise ValueError(f"--shard is {shard!r}; give a share such as 0/2")
    torch.set_num_threads(1)
    console = Console()
    if not report_only:
        prepare_folder(output)
        draw_all(wanted, parts, captions, output, (int(index), int(of_all)), lambda path: console.print(str(path)))
    for cell in wanted:
        for part in parts:
            print_cell(cell, part, rows_of(cell, part, captions, output), console)


def cells_named(texts: str) -> list[Cell]:
    """The cells whose names begin like one of the texts, which commas separate.

    Raises:
        ValueError: a text begins no name.
    """
    cells = [Cell(model, reward, budget) for model in MODELS for reward in REWARDS for budget in BUDGETS]
    found: list[Cell] = []
    for text in texts.split(","):
        named = [cell for cell in cells if f"{cell.name}/".startswith(f"{text.rstrip('/')}/")]
        if not named:
            raise ValueError(f"--cells holds {text!r}; name cells such as {cells[0].name}, or their beginnings")
        found += [cell for cell in named if cell not in found]
    return found


def print_cell(cell: Cell, split: str, rows: dict[str, Row], console: Console) -> None:
    """The table of a cell, best candidates first."""
    if not rows:
        return
    order = sorted(rows, key=lambda name: -sum(rows[name].rewards))
    table = text_table("candidate", "reward", "behind the best", "right, %", "evaluations", "scores")
    table.title = f"{cell.name}, {split}, {len(rows[order[0]].rewards)} captions: {verdict(cell, rows)}"
    for name in order:
        row = rows[name]
        behind, width = difference(row, rows[order[0]])
        table.add_row(
            name,
            f"{sum(row.rewards) / len(row.rewards):.2f}",
            f"{behind:.2f} ± {width:.2f}",
            f"{100 * sum(row.right) / len(row.right):.0f}",
            str(row.evaluations),
            str(row.scores),
        )
    console.print(table)


app = command(benchmark_choosing)

if __name__ == "__main__":
    app()
