"""Writes an evaluation: tables, CSV, JSON, and the results of GenEval in its own layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import plain, write_bytes, write_json
from ..scoring.statistics import Estimate
from ..text_tables import NOTHING, TextTable, csv_of, markdown, number_text, percent_text
from .images import ImageSet
from .judges import ImageJudge
from .summary import JudgedSet
from .verdicts import StoredVerdict

GENEVAL = "suite geneval"
RIGHT = 0.5
"""From this score on an image is right in GenEval's results, where scores are 0 or 1."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and its results.

    Attributes:
        settings: what was asked for.
        image_sets: the sets of images.
        judges: the judges.
        verdicts: in the order of sets, judges and images.
        rows: of the tables.
    """

    settings: Mapping[str, Any]
    image_sets: Sequence[ImageSet]
    judges: Sequence[ImageJudge]
    verdicts: Sequence[StoredVerdict]
    rows: Sequence[JudgedSet]

    def tables(self) -> list[TextTable]:
        """The scores of all sets by all judges, their differences, then each judge's categories and further figures."""
        tables = [self._scores(), self._differences()]
        for judge in self.judges:
            own = [row for row in self.rows if row.judge == judge.name]
            tables.append(self._table(judge, "by category", own, lambda row: row.categories))
            tables.append(self._table(judge, "further figures", own, lambda row: row.parts))
        return [table for table in tables if len(table.header) > 1 and table.rows]

    def _scores(self) -> TextTable:
        """A row for each set, with a column for each judge and for what was known of the images before."""
        known = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        lines = []
        for rows in self._rows_of_sets():
            first = rows[0]
            figures = [f"{first.figures[name]:.4g}" if name in first.figures else NOTHING for name in known]
            scores = [_writer(judge)(row.score, "") for judge, row in zip(self.judges, rows, strict=True)]
            lines.append([first.image_set, str(first.num_prompts), str(first.num_images), *figures, *scores])
        header = ["images of", "prompts", "images", *known, *(judge.name for judge in self.judges)]
        return TextTable("Scores, of suites in % [95 % intervals]", header, lines)

    def _differences(self) -> TextTable:
        """A row for each set but the first."""
        lines = []
        for rows in self._rows_of_sets()[1:]:
            cells = [_writer(judge)(row.difference, "+") for judge, row in zip(self.judges, rows, strict=True)]
            lines.append([rows[0].image_set, str(rows[0].num_shared), *cells])
        header = ["images of", "prompts of both", *(judge.name for judge in self.judges)]
        return TextTable(f"Minus {self.image_sets[0].name}, of suites in % [95 % intervals]", header, lines)

    def _rows_of_sets(self) -> list[list[JudgedSet]]:
        """The rows of each set, in the order of the judges."""
        return [[row for row in self.rows if row.image_set == each.name] for each in self.image_sets]

    @staticmethod
    def _table(
        judge: ImageJudge,
        what: str,
        rows: Sequence[JudgedSet],
        figures: Callable[[JudgedSet], Mapping[str, Estimate]],
    ) -> TextTable:
        names, write = list(dict.fromkeys(name for row in rows for name in figures(row))), _writer(judge)
        lines = [[row.image_set, *(write(figures(row).get(name), "") for name in names)] for row in rows]
        unit = ", %" if judge.is_share else ""
        return TextTable(f"{judge.name}, {what}{unit} [95 % intervals]", ["images of", *names], lines)


def _writer(judge: ImageJudge) -> Callable[[Estimate | None, str], str]:
    return percent_text if judge.is_share else number_text


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes `table.md`, `results.csv` and `results.json`, and GenEval's `results.jsonl` of each set if it judged."""
    write_bytes(folder / "table.md", text_of(evaluation, "markdown").encode())
    write_bytes(folder / "results.csv", text_of(evaluation, "csv").encode())
    write_json(folder / "results.json", _results(evaluation))
    if any(judge.name == GENEVAL for judge in evaluation.judges):
        for image_set in evaluation.image_sets:
            write_bytes(folder / "geneval" / image_set.name / "results.jsonl", geneval_results(evaluation, image_set))


FORMATS = ("table", "csv", "json", "markdown")


def text_of(evaluation: Evaluation, form: str) -> str:
    """The results as csv, json or markdown."""
    if form == "csv":
        return csv_of([row.flat() for row in evaluation.rows]).decode()
    if form == "json":
        return json.dumps(plain(_results(evaluation)), indent=1, allow_nan=False) + "\n"
    return "\n".join(markdown(table) for table in evaluation.tables())


def _results(evaluation: Evaluation) -> dict[str, Any]:
    return {"settings": evaluation.settings, "scores": evaluation.rows}


def geneval_results(evaluation: Evaluation, image_set: ImageSet) -> bytes:
    """A line for each image, as GenEval's `evaluate_images.py` writes them and its `summary_scores.py` reads them.

    The details are the numbers of objects found, where GenEval keeps their boxes.
    """
    own = [
        verdict for verdict in evaluation.verdicts if verdict.image_set == image_set.name and verdict.judge == GENEVAL
    ]
    lines = []
    for image, verdict in zip(image_set.images, own, strict=True):
        line = {
            "filename": image.name,
            "tag": verdict.category,
            "prompt": verdict.prompt,
            "correct": verdict.score >= RIGHT,
            "reason": verdict.reason,
            "metadata": json.dumps(dict(image.prompt.metadata)),
            "details": json.dumps(verdict.details),
        }
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()
