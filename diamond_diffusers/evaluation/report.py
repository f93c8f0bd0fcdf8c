"""The comparison as tables, as JSON, and as sheets of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..miniature.grammar import CATEGORIES
from .compare import image_path
from .files import write_bytes, write_image, write_json
from .methods import REFERENCES, Method
from .records import Record
from .sheets import Block, Tile, draw_sheet
from .statistics import Estimate, means_by_group, paired_difference, proportion

NUM_EXAMPLES = 24
RIGHT, WRONG = (30, 150, 60), (200, 40, 40)


@dataclass(frozen=True)
class Summary:
    """One row of the table.

    Attributes:
        method: with its options.
        num_captions: on which the row rests.
        scores: share of right images by category.
        score: of all.
        differences: of the score to each reference method that was run, over the same captions.
        mean_reward: unscaled.
        cost: mean of an image; `equivalent_evaluations` is what the budget limits.
    """

    method: Method
    num_captions: int
    scores: dict[str, float]
    score: Estimate
    differences: dict[str, Estimate]
    mean_reward: float
    cost: dict[str, float]


def summarise(methods: Sequence[Method], records: Mapping[str, Sequence[Record]]) -> list[Summary]:
    """The table's rows in the order of the methods, whose records cover the same captions."""
    return [_summarise(method, records) for method in methods]


def _summarise(method: Method, records: Mapping[str, Sequence[Record]]) -> Summary:
    own = records[method.name]
    right = [record.is_right for record in own]
    costs = [record.cost.as_dict() for record in own]
    return Summary(
        method=method,
        num_captions=len(own),
        scores=means_by_group(right, [record.category for record in own]),
        score=proportion(right),
        differences={
            name: paired_difference(right, [record.is_right for record in records[name]])
            for name in REFERENCES
            if name in records and name != method.name
        },
        mean_reward=sum(record.reward for record in own) / len(own),
        cost={key: sum(cost[key] for cost in costs) / len(costs) for key in costs[0]},
    )


Column = tuple[str, Callable[[Summary], str]]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _interval(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "–"
    mean, lower, upper = (format(100 * x, f"{sign}.1f") for x in (estimate.mean, estimate.lower, estimate.upper))
    return f"{mean} [{lower}, {upper}]"


def _category(name: str) -> Column:
    return name.replace("_", " "), lambda summary: _percent(summary.scores.get(name))


def _difference(name: str) -> Column:
    return f"minus {name}", lambda summary: _interval(summary.differences.get(name), "+")


def _cost(key: str, title: str, digits: int = 0) -> Column:
    return title, lambda summary: f"{summary.cost[key]:.{digits}f}"


METHOD: Column = ("method", lambda summary: summary.method.name)
SCORES: list[Column] = [
    *map(_category, CATEGORIES),
    ("all", lambda summary: _interval(summary.score)),
]
DIFFERENCES: list[Column] = [
    *map(_difference, REFERENCES),
    ("mean reward", lambda summary: f"{summary.mean_reward:.2f}"),
]
SIZES: list[Column] = [
    ("particles", lambda summary: str(summary.method.alignment.num_particles)),
    ("steps", lambda summary: str(summary.method.num_inference_steps)),
]
COSTS: list[Column] = [
    _cost("equivalent_evaluations", "budget used"),
    _cost("network_evaluations", "network evaluations"),
    _cost("backward_passes", "backward passes"),
    _cost("decodes", "decodes"),
    _cost("reward_calls", "reward calls"),
    _cost("seconds", "seconds", 2),
]


def console_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The table in three parts, each narrow enough for a terminal."""
    count = summaries[0].num_captions
    return [
        _table(f"Right images, % of {count} captions [95 % interval]", [METHOD, *SCORES], summaries),
        _table("Paired differences in points [95 % bounds]", [METHOD, *SIZES, *DIFFERENCES], summaries),
        _table("Cost of an image", [METHOD, *COSTS], summaries),
    ]


def _table(title: str, columns: Sequence[Column], summaries: Sequence[Summary]) -> Table:
    # Words and intervals under each other keep the table within 80 columns.
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    for header, _ in columns:
        table.add_column(header.replace(" ", "\n"), justify="left" if header == METHOD[0] else "right")
    for summary in summaries:
        table.add_row(*(text(summary).replace(" [", "\n[") for _, text in columns))
    return table


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The whole table in markdown."""
    columns = [METHOD, *SCORES, *DIFFERENCES, *SIZES, *COSTS]
    lines = [[header for header, _ in columns], ["---", *["---:"] * (len(columns) - 1)]]
    lines += [[text(summary) for _, text in columns] for summary in summaries]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_report(summaries: Sequence[Summary], settings: Mapping[str, Any], folder: Path) -> None:
    """Writes `results.json` and `table.md`."""
    write_bytes(folder / "table.md", markdown_table(summaries).encode())
    write_json(folder / "results.json", {"settings": settings, "methods": summaries})


def write_examples(records: Mapping[str, Sequence[Record]], folder: Path) -> None:
    """Writes a sheet of every method's first images, framed in green where they are right and in red where not."""
    for name, drawn in records.items():
        tiles = [_example(folder, name, record) for record in drawn[:NUM_EXAMPLES]]
        write_image(folder / f"examples_{name}.png", draw_sheet([Block(name, tiles)], columns=6))


def _example(folder: Path, name: str, record: Record) -> Tile:
    with Image.open(image_path(folder, name, record.index)) as image:
        image.load()
    return Tile(image, f"{record.caption} ({record.reward:.1f})", RIGHT if record.is_right else WRONG)
