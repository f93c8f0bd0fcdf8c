"""The pictures of a comparison: figures of quality against cost, traces, and example images."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter
from PIL import Image

from ...files.foreign_images import load_image
from ..scoring.statistics import NORMAL_QUANTILE, Estimate
from ..sheets import Block, Tile, draw_sheet
from ..text_tables import NOTHING
from .compare import method_folder
from .pareto import Point, points_of
from .plan import EVALUATIONS, SizedMethod
from .records import AGAIN, Key, Record, image_path
from .summary import Summary, method_names

Style = Mapping[str, Any]
"""Options of a line: `color` and `linestyle`."""

NUM_EXAMPLES = 8
RIGHT, WRONG = (30, 150, 60), (200, 40, 40)
LINE_STYLES = ("-", "--", ":")
Panel = tuple[str, str, Callable[[Summary], float]]
"""A title, the form of its figures, and what they are."""
TRACES = {
    "effective_sample_size": "effective sample size / particles",
    "mean_value": "mean value of the particles",
    "best_value": "value of the best particle",
    "gradient_norm": "guidance shift (RMS)",
}
"""Figures of `Trace` and what their axes say."""


def cost_figures(summaries: Sequence[Summary]) -> dict[str, Figure]:
    """Figures by file name: the judge's score, the reward and every held-out reward against network evaluations."""
    figures = {"reward_against_cost": _against_cost(summaries, "reward", lambda summary: summary.reward)}
    if summaries[0].score is not None:
        figures["score_against_cost"] = _against_cost(summaries, "share of right images", lambda summary: summary.score)
    for name in summaries[0].held_out_rewards:
        figures[f"held_out_{_file_name(name)}_against_cost"] = _against_cost(
            summaries, f"held out: {name}", partial(_held_out, name)
        )
    return figures


def _against_cost(summaries: Sequence[Summary], what: str, estimate_of: Callable[[Summary], Estimate | None]) -> Figure:
    """Draws a line with its confidence band for each method."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, style in method_styles(summaries).items():
        points = {summary.spent: estimate_of(summary) for summary in summaries if summary.method.name == name}
        costs = sorted(points)
        mean, lower, upper = ([getattr(points[cost], bound) for cost in costs] for bound in ("mean", "lower", "upper"))
        axes.plot(costs, mean, **style, marker=".", label=name)
        if len(costs) > 1:
            axes.fill_between(costs, lower, upper, color=style["color"], alpha=0.12, linewidth=0)
        else:
            axes.vlines(costs, lower, upper, **style)
    axes.set_xscale("log")
    axes.set_xlabel(_axis_text(summaries[0]))
    axes.set_ylabel(what)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xticks(sorted({summary.budget for summary in summaries}))
    axes.minorticks_off()
    _legend(figure, axes)
    return figure


def _axis_text(summary: Summary) -> str:
    if summary.unit == EVALUATIONS:
        return "network evaluations of an image, a backward pass counted as two"
    return "seconds of an image, of the processors" if "cpu_seconds" in summary.cost else "seconds of an image"


def pareto_figures(summaries: Sequence[Summary]) -> dict[str, Figure]:
    """Figures by file name: the followed reward against each held-out one, with the front that no method beats."""
    return {
        f"pareto_{_file_name(name)}": _pareto(points_of(summaries, name), name, method_styles(summaries))
        for name in summaries[0].held_out_rewards
    }


def _pareto(points: Sequence[Point], held_out: str, styles: Mapping[str, Style]) -> Figure:
    """Draws each method with its two intervals, those that another one dominates lighter, and the others numbered."""
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    front = [point for point in reversed(points) if point.is_on_front]
    # What is reached at a followed reward and all below it.
    corners = [(point.reward.mean, point.held_out.mean) for point in front]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color="black", linewidth=1, zorder=1)
    for point in reversed(points):
        axes.errorbar(
            point.reward.mean,
            point.held_out.mean,
            xerr=_half_widths(point.reward),
            yerr=_half_widths(point.held_out),
            color=styles[point.method.name]["color"],
            alpha=1.0 if point.is_on_front else 0.3,
            marker="o" if point.is_on_front else ".",
            elinewidth=1,
            linestyle="none",
            zorder=3 if point.is_on_front else 2,
        )
    # By numbers, since names of methods that are close would cover each other.
    labels = {}
    for number, point in enumerate(reversed(front), 1):
        where = point.reward.mean, point.held_out.mean
        axes.annotate(str(number), where, xytext=(4, 4), textcoords="offset points", fontweight="bold")
        labels[f"{number}: {point.method.name}, {point.cost:.0f}"] = point.method.name
    labels |= {name: name for name in dict.fromkeys(point.method.name for point in points if not point.is_on_front)}
    axes.set_xlabel("reward that was followed")
    axes.set_ylabel(f"held out: {held_out}")
    handles = [
        Line2D([], [], color=styles[name]["color"], marker="o", linestyle="none", alpha=0.4 if label == name else 1.0)
        for label, name in labels.items()
    ]
    figure.legend(handles, list(labels), loc="outside right center", fontsize="small")
    return figure


def _half_widths(estimate: Estimate) -> list[list[float]]:
    """How far an interval reaches below and above its mean."""
    # A mean of equal numbers may differ from its bounds by rounding.
    return [[max(0.0, estimate.mean - estimate.lower)], [max(0.0, estimate.upper - estimate.mean)]]


def _right_share(summary: Summary) -> float:
    assert summary.score is not None, "where one row has a judge, all have"
    return 100 * summary.score.mean


def _held_out(name: str, summary: Summary) -> Estimate:
    return summary.held_out_rewards[name]


def overview_figure(summaries: Sequence[Summary]) -> Figure:
    """The judge's score, if there is a judge, and the reward: one row for each method, best ones first, by budget."""
    panels: list[Panel] = [("reward", "{:.1f}", lambda summary: summary.reward.mean)]
    if summaries[0].score is not None:
        panels.insert(0, ("right images, %", "{:.0f}", _right_share))
    budgets = list(dict.fromkeys(summary.budget for summary in summaries))
    cells = {(summary.method.name, summary.budget): summary for summary in summaries}

    def mean_reward(name: str) -> float:
        return float(np.mean([cells[name, budget].reward.mean for budget in budgets if (name, budget) in cells]))

    names = sorted(method_names(summaries), key=mean_reward, reverse=True)
    figure = Figure(figsize=(2.2 + (1 + 0.7 * len(budgets)) * len(panels), 1 + 0.27 * len(names)), layout="constrained")
    for axes, (title, form, value_of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        table = np.full((len(names), len(budgets)), np.nan)
        for row, name in enumerate(names):
            for column, budget in enumerate(budgets):
                if (name, budget) in cells:
                    table[row, column] = value_of(cells[name, budget])
                text = NOTHING if np.isnan(table[row, column]) else form.format(table[row, column])
                axes.text(column, row, text, ha="center", va="center", fontsize="small")
        # Between the worst and the best hue the figures stay readable.
        axes.imshow(table, cmap="RdYlGn", alpha=0.6, aspect="auto")
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(len(budgets)), budgets)
        axes.set_yticks(range(len(names)), names if axes is figure.axes[0] else [], fontsize="small")
        axes.tick_params(length=0)
    figure.supxlabel(f"{summaries[0].unit} of an image", fontsize="medium")
    return figure


def trace_figure(
    methods: Sequence[SizedMethod], records: Mapping[str, Sequence[Record]], styles: Mapping[str, Style]
) -> Figure | None:
    """The figures of each step, as means over images with 95 % bands; None if no method has recorded any.

    Args:
        records: the records of each method, by label.
        styles: the line style of each method, by name.
    """
    names = [name for name in TRACES if any(_recorded(records[method.label], name) for method in methods)]
    if not names:
        return None
    figure = Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for method in methods:
            steps, values = _steps(records[method.label], name)
            if not steps:
                continue
            scale = method.alignment.num_particles if name == "effective_sample_size" else 1
            centre, spread = values.mean(0) / scale, values.std(0) / scale
            half = NORMAL_QUANTILE * spread / np.sqrt(len(values))
            # Methods differ in their number of steps.
            where = np.asarray(steps) / max(len(records[method.label][0].trace), 1)
            style = styles[method.name]
            axes.plot(where, centre, **style, marker=".", label=method.name)
            axes.fill_between(where, centre - half, centre + half, color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xlabel("share of the steps that are done")
        axes.set_ylabel(TRACES[name])
    handles = {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(list(handles.values()), list(handles.keys()), loc="outside right center", fontsize="small")
    return figure


def _recorded(records: Sequence[Record], name: str) -> bool:
    return any(name in step for step in records[0].trace)


def _steps(records: Sequence[Record], name: str) -> tuple[list[int], np.ndarray]:
    """The steps that recorded a figure for every image, and its values `[images, steps]`."""
    # Where a method may stop early, images differ in their number of steps.
    count = min(len(record.trace) for record in records)
    steps = [index for index in range(count) if all(name in record.trace[index] for record in records)]
    return [index + 1 for index in steps], np.array([[record.trace[i][name] for i in steps] for record in records])


def example_sheet(methods: Sequence[SizedMethod], records: Mapping[str, Sequence[Record]], folder: Path) -> Image.Image:
    """The first image of the first prompts, drawn by every method: framed in green where the judge finds them right,
    in red where not."""
    blocks = []
    for key in example_keys(records[methods[0].label]):
        drawn = [next(record for record in records[method.label] if record.key == key) for method in methods]
        tiles = [_tile(folder, method, record) for method, record in zip(methods, drawn, strict=True)]
        blocks.append(Block(drawn[0].prompt, tiles))
    return draw_sheet(blocks, columns=len(methods))


def example_keys(records: Sequence[Record]) -> list[Key]:
    """The keys of the images that are shown of every method."""
    return [record.key for record in records if record.image == 0][:NUM_EXAMPLES]


def _tile(folder: Path, method: SizedMethod, record: Record) -> Tile:
    image = load_image(image_path(method_folder(folder, method), record.key), AGAIN)
    frame = None if record.is_right is None else RIGHT if record.is_right else WRONG
    return Tile(image, f"{method.name} ({record.reward:.4g})", frame)


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def method_styles(summaries: Sequence[Summary]) -> dict[str, Style]:
    """A line of its own for each method's name, the same in all figures of a comparison."""
    palette = colormaps["tab20"].colors  # type: ignore[attr-defined]
    # The even ones are strong, the odd ones pale.
    ordered = [*palette[::2], *palette[1::2]]
    styles = [{"color": colour, "linestyle": kind} for kind in LINE_STYLES for colour in ordered]
    return {name: styles[index % len(styles)] for index, name in enumerate(method_names(summaries))}


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)
