"""The comparison in pictures: what methods reach against what they cost, their traces, and what they draw."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter
from PIL import Image

from .compare import method_folder
from .methods import Method
from .records import Key, Record, image_path
from .sheets import Block, Tile, draw_sheet
from .statistics import NORMAL_QUANTILE, Estimate
from .summary import Summary, method_names

Colour = tuple[float, float, float]

NUM_EXAMPLES = 8
RIGHT, WRONG = (30, 150, 60), (200, 40, 40)
TRACES = {
    "effective_sample_size": "effective sample size / particles",
    "mean_value": "mean value of the particles",
    "best_value": "value of the best particle",
    "gradient_norm": "guidance shift (RMS)",
}
"""Figures of `Trace` and what their axes say."""


def cost_figures(summaries: Sequence[Summary]) -> dict[str, Figure]:
    """By file name: the judge's score, the reward and every held-out reward against network evaluations."""
    figures = {"reward_against_cost": _against_cost(summaries, "reward", lambda summary: summary.reward)}
    if summaries[0].score is not None:
        figures["score_against_cost"] = _against_cost(summaries, "share of right images", lambda summary: summary.score)
    for name in summaries[0].held_out_rewards:
        figures[f"held_out_{_file_name(name)}_against_cost"] = _against_cost(
            summaries, f"held out: {name}", lambda summary, name=name: summary.held_out_rewards[name]
        )
    return figures


def _against_cost(summaries: Sequence[Summary], what: str, estimate_of: Callable[[Summary], Estimate | None]) -> Figure:
    """One line with its confidence band a method."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, colour in method_colours(summaries).items():
        points = {
            summary.cost["equivalent_evaluations"]: estimate_of(summary)
            for summary in summaries
            if summary.method.name == name
        }
        costs = sorted(points)
        mean, lower, upper = ([getattr(points[cost], bound) for cost in costs] for bound in ("mean", "lower", "upper"))
        axes.plot(costs, mean, color=colour, marker=".", label=name)
        if len(costs) > 1:
            axes.fill_between(costs, lower, upper, color=colour, alpha=0.12, linewidth=0)
        else:
            axes.vlines(costs, lower, upper, color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("network evaluations of an image, a backward pass counted as two")
    axes.set_ylabel(what)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set_xticks(sorted({summary.budget for summary in summaries}))
    axes.minorticks_off()
    _legend(figure, axes)
    return figure


def trace_figure(
    methods: Sequence[Method], records: Mapping[str, Sequence[Record]], colours: Mapping[str, Colour]
) -> Figure | None:
    """The figures of each step, as means over images with 95 % bands; None where no method has recorded any.

    Args:
        records: of each method's label.
        colours: of each method's name.
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
            axes.plot(where, centre, color=colours[method.name], marker=".", label=method.name)
            axes.fill_between(where, centre - half, centre + half, color=colours[method.name], alpha=0.12, linewidth=0)
        axes.set_xlabel("share of the steps that are done")
        axes.set_ylabel(TRACES[name])
    handles = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize="small")
    return figure


def _recorded(records: Sequence[Record], name: str) -> bool:
    return any(name in step for step in records[0].trace)


def _steps(records: Sequence[Record], name: str) -> tuple[list[int], np.ndarray]:
    """The steps that recorded a figure for every image, and its values `[images, steps]`."""
    # Where a method may stop early, images differ in their number of steps.
    count = min(len(record.trace) for record in records)
    steps = [index for index in range(count) if all(name in record.trace[index] for record in records)]
    return [index + 1 for index in steps], np.array([[record.trace[i][name] for i in steps] for record in records])


def example_sheet(methods: Sequence[Method], records: Mapping[str, Sequence[Record]], folder: Path) -> Image.Image:
    """The first image of the first prompts, drawn by every method: framed in green where the judge finds them right,
    in red where not."""
    blocks = []
    for key in example_keys(records[methods[0].label]):
        drawn = [next(record for record in records[method.label] if record.key == key) for method in methods]
        tiles = [_tile(folder, method, record) for method, record in zip(methods, drawn, strict=True)]
        blocks.append(Block(drawn[0].prompt, tiles))
    return draw_sheet(blocks, columns=len(methods))


def example_keys(records: Sequence[Record]) -> list[Key]:
    """The images that are shown of every method."""
    return [record.key for record in records if record.image == 0][:NUM_EXAMPLES]


def _tile(folder: Path, method: Method, record: Record) -> Tile:
    with Image.open(image_path(method_folder(folder, method), record.key)) as image:
        image.load()
    frame = None if record.is_right is None else RIGHT if record.is_right else WRONG
    return Tile(image, f"{method.name} ({record.reward:.4g})", frame)


def png(figure: Figure) -> bytes:
    """A figure as a file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def method_colours(summaries: Sequence[Summary]) -> dict[str, Colour]:
    """A colour for each method's name, the same in all figures of a comparison."""
    palette = colormaps["tab20"].colors
    # The even ones are strong, the odd ones pale.
    ordered = [*palette[::2], *palette[1::2]]
    return {name: ordered[index % len(ordered)] for index, name in enumerate(method_names(summaries))}


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize="small")


def _file_name(name: str) -> str:
    return "".join(character if character.isalnum() or character in "-_" else "_" for character in name)
