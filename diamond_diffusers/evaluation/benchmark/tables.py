"""The columns of a comparison's tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...miniature.grammar import CATEGORIES
from ..scoring.statistics import Estimate
from ..text_tables import NOTHING, TextTable, number_text, percent_text
from .pareto import points_of
from .plan import REFERENCES, LeftOut
from .recipes import grid_cells
from .summary import WITHOUT_MAP, Summary, method_names

Column = tuple[str, Callable[[Summary], str]]


def text_tables(summaries: Sequence[Summary], left_out: Sequence[LeftOut] = ()) -> list[TextTable]:
    """The methods at all budgets, then each budget with its differences and costs, fronts, and what was left out."""
    tables = [_overview(summaries)]
    budgets = dict.fromkeys(summary.budget for summary in summaries)
    for budget in budgets:
        rows = [summary for summary in summaries if summary.budget == budget]
        where = f", budget {budget}" if len(budgets) > 1 else ""
        tables.append(_table(f"{_quality_title(rows)}{where}", [METHOD, *_quality(rows)], rows))
        tables.append(
            _table(f"Differences and rewards [95 % intervals]{where}", [METHOD, *SIZES, *_rewards(rows)], rows)
        )
        if rows[0].score is not None:
            differences = _differences(rows, "reward", lambda row: row.reward_differences, number_text)
            tables.append(_table(f"Differences in reward [95 % intervals]{where}", [METHOD, *differences], rows))
        tables.append(_grid(rows, where))
        tables.append(_table(f"Cost of an image{where}", [METHOD, *_costs(rows)], rows))
    if any(summary.method.own_steps for summary in summaries):
        tables.append(_shortened(summaries))
    tables += [_pareto(summaries, name) for name in summaries[0].held_out_rewards]
    if left_out:
        tables.append(_left_out(left_out))
    return [table for table in tables if len(table.header) > 1]


def aim(summary: Summary) -> tuple[Estimate, Callable[[Estimate | None, str], str]]:
    """The figure by which methods are compared, with its format: the judge's score, or the reward without a judge."""
    return (summary.reward, number_text) if summary.score is None else (summary.score, percent_text)


def _overview(summaries: Sequence[Summary]) -> TextTable:
    """A table with one row for each method and one column for each budget."""
    budgets = list(dict.fromkeys(summary.budget for summary in summaries))
    cells = {(summary.method.name, summary.budget): summary for summary in summaries}
    what = "Mean reward" if summaries[0].score is None else "Right images, %"
    rows = []
    for name in method_names(summaries):
        found = [cells.get((name, budget)) for budget in budgets]
        rows.append([name, *(NOTHING if cell is None else _aim_text(cell) for cell in found)])
    header = ["method", *(str(budget) for budget in budgets)]
    return TextTable(f"{what}, by {summaries[0].unit} an image [95 % intervals]", header, rows)


def _grid(rows: Sequence[Summary], where: str) -> TextTable:
    """A row for each method and a column for each posterior sampler, where several methods are of the grid."""
    cells = {found: row for row in rows if (found := grid_cells().get(row.method.name)) is not None}
    columns, methods = ([*dict.fromkeys(cell[place] for cell in cells)] for place in (0, 1))
    if len(columns) < 2 or len(methods) < 2:
        return TextTable("", [""], [])
    texts = {cell: _figures(row) for cell, row in cells.items()}
    body = [[method, *(texts.get((column, method), NOTHING) for column in columns)] for method in methods]
    what = "mean reward" if rows[0].score is None else "right images in % / mean reward"
    return TextTable(f"Every method with every posterior sampler, {what}{where}", ["method", *columns], body)


def _figures(summary: Summary) -> str:
    reward = f"{summary.reward.mean:.4g}"
    return reward if summary.score is None else f"{100 * summary.score.mean:.0f} / {reward}"


def _pareto(summaries: Sequence[Summary], held_out: str) -> TextTable:
    """A row for each method that none of the others beats in the followed reward and in a held-out one."""
    points = points_of(summaries, held_out)
    rows = [
        [point.method.name, f"{point.cost:.0f}", number_text(point.reward), number_text(point.held_out)]
        for point in points
        if point.is_on_front
    ]
    title = f"Pareto front of the reward and held out: {held_out}, {len(rows)} of {len(points)} [95 % intervals]"
    return TextTable(title, ["method", "budget used", "reward", f"held out: {held_out}"], rows)


def _shortened(summaries: Sequence[Summary]) -> TextTable:
    """A row for each method that a budget does not pay for in its own number of steps."""
    short: dict[tuple[str, int], list[str]] = {}
    for row in summaries:
        if row.method.own_steps is not None:
            found = short.setdefault((row.method.name, row.method.own_steps), [])
            found.append(f"{row.method.num_inference_steps} at {row.budget}")
    rows = [[name, str(own), ", ".join(steps)] for (name, own), steps in short.items()]
    return TextTable(
        "In fewer steps than their own, which the budget does not pay for", ["method", "own", "steps"], rows
    )


def _left_out(entries: Sequence[LeftOut]) -> TextTable:
    """A row for each method and reason, which may hold at several budgets."""
    budgets: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        budgets.setdefault((entry.name, entry.reason), []).append(str(entry.budget))
    rows = [[name, ", ".join(where), reason] for (name, reason), where in budgets.items()]
    return TextTable("Left out", ["method", "budget", "reason"], rows)


def _aim_text(summary: Summary) -> str:
    estimate, write = aim(summary)
    return write(estimate, "")


def _table(title: str, columns: Sequence[Column], rows: Sequence[Summary]) -> TextTable:
    return TextTable(title, [header for header, _ in columns], [[text(row) for _, text in columns] for row in rows])


def _quality_title(rows: Sequence[Summary]) -> str:
    if rows[0].score is None:
        return f"Images of {rows[0].num_prompts} prompts"
    return f"Right images, % of {rows[0].num_images} [95 % interval]"


def _quality(rows: Sequence[Summary]) -> list[Column]:
    """The judge's scores, if there is a judge, and diversity, if it was measured."""
    found = dict.fromkeys(category for row in rows for category in row.scores)
    ordered = [*(name for name in CATEGORIES if name in found), *(name for name in found if name not in CATEGORIES)]
    columns = [_category(name) for name in ordered]
    columns += [_hard(name) for name in dict.fromkeys(name for row in rows for name in row.hard_scores)]
    if rows[0].score is not None:
        columns.append(("all", lambda summary: percent_text(summary.score)))
    if any(row.diversity is not None for row in rows):
        columns.append(("diversity", lambda summary: number_text(summary.diversity)))
    return columns


def _rewards(rows: Sequence[Summary]) -> list[Column]:
    held_out = dict.fromkeys(name for row in rows for name in row.held_out_rewards)
    figure = "reward" if rows[0].score is None else "score"
    return [
        *_differences(rows, figure, lambda row: row.differences, aim(rows[0])[1]),
        ("reward", lambda summary: number_text(summary.reward)),
        *(_held_out(name) for name in held_out),
    ]


def _category(name: str) -> Column:
    def text(summary: Summary) -> str:
        return f"{100 * summary.scores[name]:.1f}" if name in summary.scores else NOTHING

    return name.replace("_", " "), text


def _differences(
    rows: Sequence[Summary],
    figure: str,
    differences_of: Callable[[Summary], Mapping[str, Estimate]],
    write: Callable[[Estimate | None, str], str],
) -> list[Column]:
    """A column for each method to which there are differences, of which the best without a map is named."""
    best = next((row.best_without_map[figure] for row in rows if figure in row.best_without_map), "")
    names = {**{name: name for name in REFERENCES}, WITHOUT_MAP: f"{best}, the best without a map"}
    present = {name for row in rows for name in differences_of(row)}

    def column(name: str) -> Column:
        return f"minus {names[name]}", lambda row: write(differences_of(row).get(name), "+")

    return [column(name) for name in names if name in present]


def _hard(name: str) -> Column:
    return f"{name} captions", lambda summary: percent_text(summary.hard_scores.get(name))


def _held_out(name: str) -> Column:
    return f"held out: {name}", lambda summary: number_text(summary.held_out_rewards.get(name))


def _costs(rows: Sequence[Summary]) -> list[Column]:
    on_cpu = [CPU_SECONDS] if all("cpu_seconds" in row.cost for row in rows) else []
    return [*COSTS, *on_cpu, PEAK]


def _cost(key: str, title: str, digits: int = 0) -> Column:
    return title, lambda summary: f"{summary.cost[key]:.{digits}f}"


METHOD: Column = ("method", lambda summary: summary.method.name)
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
CPU_SECONDS = _cost("cpu_seconds", "CPU seconds", 2)
PEAK: Column = (
    "peak MiB",
    lambda summary: NOTHING if summary.peak_bytes is None else f"{summary.peak_bytes / 2**20:.0f}",
)
