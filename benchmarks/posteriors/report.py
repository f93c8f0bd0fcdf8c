"""The comparison of posterior samplers as tables, as files, and as a plot."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diamond_diffusers.evaluation.files import write_bytes, write_json
from diamond_diffusers.evaluation.text_tables import TextTable, markdown
from diamond_diffusers.files.csv_tables import csv_table

from .comparison import REFERENCE, LawDistance, PosteriorBenchmark, Settings, ValueAccuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVEL = "level (time of rectified flow)"


def text_tables(result: PosteriorBenchmark, settings: Settings) -> list[TextTable]:
    """Energy distances, deviation ratios, the values where there was a reward, and what was left out."""
    reference = f"GLASS of {settings.reference_steps} steps ({settings.reference.solver})"
    headers = ["sampler", *(f"t={level:g}" for level in settings.levels)]
    distances = _by_sampler(result.distances, lambda one: f"{one.energy_distance:.3g} ± {one.standard_error:.1g}")
    ratios = _by_sampler(result.distances, lambda one: f"{one.deviation_ratio:.3f}")
    values = [_value_row(one) for one in result.values if one.level is None]
    value_headers = ["sampler", "look-aheads", "network evaluations", "error", "rank correlation"]
    tables = [
        TextTable(f"Energy distance of look-aheads to {reference}, in latents, ± standard error", headers, distances),
        TextTable(f"Total standard deviation of look-aheads, relative to {reference}", headers, ratios),
        TextTable(f"Value estimates: root mean square error to {reference}, over all levels", value_headers, values),
        TextTable("Left out", ["sampler", "reason"], [[name, reason] for name, reason in result.left_out.items()]),
    ]
    return [table for table in tables if table.rows]


def _by_sampler(distances: Iterable[LawDistance], text: Callable[[LawDistance], str]) -> list[list[str]]:
    rows: dict[str, list[str]] = {}
    for distance in distances:
        rows.setdefault(distance.sampler, [distance.sampler]).append(text(distance))
    return list(rows.values())


def _value_row(one: ValueAccuracy) -> list[str]:
    correlation = "–" if one.rank_correlation is None else f"{one.rank_correlation:.2f}"
    numbers = [f"{one.num_look_aheads}", f"{one.network_evaluations:.1f}", f"{one.error:.3f}", correlation]
    return [one.sampler, *numbers]


def write_report(result: PosteriorBenchmark, settings: Settings, facts: Mapping[str, Any], folder: Path) -> None:
    """Writes `results.json`, `distances.csv`, `values.csv`, `tables.md` and `plot.png`.

    Args:
        facts: what else the results depend on.
    """
    everything = {"settings": {**facts, **asdict(settings), "reference": settings.reference}, **vars(result)}
    write_json(folder / "results.json", everything)
    write_bytes(folder / "distances.csv", _csv(LawDistance, result.distances))
    write_bytes(folder / "values.csv", _csv(ValueAccuracy, result.values))
    write_bytes(folder / "tables.md", "\n".join(map(markdown, text_tables(result, settings))).encode())
    image = io.BytesIO()
    plot(result).savefig(image, format="png", dpi=120)
    write_bytes(folder / "plot.png", image.getvalue())


def _csv(kind: type, rows: Iterable[Any]) -> bytes:
    columns = [field.name for field in fields(kind)]
    return csv_table(columns, [[getattr(row, name) for name in columns] for row in rows]).encode()


def plot(result: PosteriorBenchmark) -> Figure:
    """Absolute energy distances and deviation ratios by level, and errors of values by network evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(17, 4.5), layout="constrained")
    energy, ratio, error = figure.subplots(1, 3)
    overall = [one for one in result.values if one.level is None]
    names = dict.fromkeys(one.sampler for one in (*result.distances, *overall))
    colours = {name: "black" if name == REFERENCE else f"C{index}" for index, name in enumerate(names)}
    _draw(energy, [(one.sampler, one.level, abs(one.energy_distance)) for one in result.distances], colours)
    _draw(ratio, [(one.sampler, one.level, one.deviation_ratio) for one in result.distances], colours)
    _draw(error, [(one.sampler, one.network_evaluations, one.error) for one in overall], colours)
    energy.set(title="energy distance (absolute)", xlabel=LEVEL, yscale="log")
    ratio.set(title="standard deviation over the reference's", xlabel=LEVEL)
    error.set(title="error of the value", xlabel="network evaluations of an estimate", xscale="log", yscale="log")
    figure.legend(*(error if overall else energy).get_legend_handles_labels(), loc="outside right center")
    return figure


def _draw(axes: Axes, points: Iterable[tuple[str, float, float]], colours: Mapping[str, str]) -> None:
    """One line a sampler, of `(sampler, x, y)`."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for sampler, x, y in points:
        lines.setdefault(sampler, []).append((x, y))
    for sampler, line in lines.items():
        axes.plot(*zip(*sorted(line), strict=True), marker=".", label=sampler, color=colours[sampler])
