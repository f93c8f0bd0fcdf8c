"""Writes a comparison: tables, CSV, JSON, pictures and one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_bytes, write_image, write_json
from ..text_tables import TextTable, csv_of, markdown
from .compare import method_folder
from .html_report import html_report
from .plan import Plan
from .plots import cost_figures, example_sheet, method_styles, overview_figure, pareto_figures, png, trace_figure
from .records import Record, image_path
from .summary import Summary
from .tables import text_tables

TITLE = "Alignment methods at equal cost"


@dataclass(frozen=True)
class Comparison:
    """A comparison and its results.

    Attributes:
        settings: the settings that all methods share.
        plan: the methods.
        records: the records of each method, by label.
        summaries: the rows of the table.
    """

    settings: Mapping[str, Any]
    plan: Plan
    records: Mapping[str, Sequence[Record]]
    summaries: Sequence[Summary]

    def tables(self) -> list[TextTable]:
        """All tables."""
        return text_tables(self.summaries, self.plan.left_out)


def write_report(comparison: Comparison, folder: Path) -> None:
    """Writes `table.md`, `results.csv`, `images.csv`, `results.json`, the pictures of `plots/`, and `report.html`."""
    plan, records, tables = comparison.plan, comparison.records, comparison.tables()
    write_bytes(folder / "table.md", "\n".join(markdown(table) for table in tables).encode())
    write_bytes(folder / "results.csv", csv_of([summary.flat() for summary in comparison.summaries]))
    write_bytes(folder / "images.csv", csv_of(_image_rows(comparison, folder)))
    results = {"settings": comparison.settings, "methods": comparison.summaries, "left_out": plan.left_out}
    write_json(folder / "results.json", results)
    figures = {"overview": overview_figure(comparison.summaries), **cost_figures(comparison.summaries)}
    figures |= pareto_figures(comparison.summaries)
    styles = method_styles(comparison.summaries)
    for budget in dict.fromkeys(entry.budget for entry in plan.entries):
        if (traces := trace_figure(plan.at(budget), records, styles)) is not None:
            figures[f"traces_{budget}"] = traces
        write_image(folder / "plots" / f"images_{budget}.png", example_sheet(plan.at(budget), records, folder))
    pictures = {name: png(figure) for name, figure in figures.items()}
    for name, picture in pictures.items():
        write_bytes(folder / "plots" / f"{name}.png", picture)
    page = html_report(TITLE, comparison.settings, tables, pictures, plan, records, folder)
    write_bytes(folder / "report.html", page.encode())


def _image_rows(comparison: Comparison, folder: Path) -> list[dict[str, Any]]:
    """One row for every image."""
    rows = []
    for method in comparison.plan.methods:
        for record in comparison.records[method.label]:
            path = image_path(method_folder(folder, method), record.key).relative_to(folder)
            row = {
                "file": path.as_posix(),
                "method": method.name,
                "prompt_index": record.index,
                "image": record.image,
                "prompt": record.prompt,
                "category": record.category,
                "seed": record.seed,
                "is_right": record.is_right,
                "reward": record.reward,
            }
            held_out = {f"held_out_{name}": score for name, score in record.held_out_rewards.items()}
            rows.append(row | held_out | record.cost.as_dict())
    return rows
