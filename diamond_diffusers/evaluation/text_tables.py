"""Tables of figures as text: for the console, in markdown and as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from ..files.csv_tables import csv_table
from .scoring.statistics import Estimate

NOTHING = "–"


@dataclass(frozen=True)
class TextTable:
    """A table whose first column holds names and whose others hold figures."""

    title: str
    header: list[str]
    rows: list[list[str]]


def rich_table(table: TextTable) -> Table:
    """A table for the console, without its title."""
    # Words and intervals under each other keep the table within 80 columns.
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    for position, header in enumerate(table.header):
        justify: Literal["left", "right"] = "left" if position == 0 or header == "reason" else "right"
        drawn.add_column(escape(header).replace(" ", "\n"), justify=justify, overflow="fold", no_wrap=position == 0)
    for row in table.rows:
        drawn.add_row(*(escape(cell.replace(" [", "\n[")) for cell in row))
    return drawn


def markdown(table: TextTable) -> str:
    """A table in markdown, under its title."""
    lines = [table.header, ["---", *["---:"] * (len(table.header) - 1)], *table.rows]
    escaped = [[_markdown_cell(cell) for cell in cells] for cells in lines]
    return f"**{' '.join(table.title.split())}**\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _markdown_cell(text: str) -> str:
    """A text as it is, in one line: without markup, links, and the end of its cell."""
    for sign in ("\\", "|", "`", "*", "<"):
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split()).replace("](", r"]\(")


def csv_of(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows of possibly different columns as CSV, in the order in which columns first come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table(columns, [[row.get(name) for name in columns] for row in rows]).encode()


def flat_row(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as plain numbers and texts under one-level names, without those that are None."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            value = asdict(value)
        if isinstance(value, Mapping):
            flat |= flat_row(value, f"{prefix}{name}_")
        elif value is not None:
            flat[prefix + name] = value
    return flat


def percent_text(estimate: Estimate | None, sign: str = "") -> str:
    """A share with its interval, in percent; `sign` is "+" for differences."""
    return _interval(estimate, 100, f"{sign}.1f")


def number_text(estimate: Estimate | None, sign: str = "") -> str:
    """A number with its interval; `sign` is "+" for differences."""
    return _interval(estimate, 1, f"{sign}.3g" if sign else ".4g")


def _interval(estimate: Estimate | None, factor: float, form: str) -> str:
    if estimate is None:
        return NOTHING
    mean, lower, upper = (format(factor * x, form) for x in (estimate.mean, estimate.lower, estimate.upper))
    return f"{mean} [{lower}, {upper}]"
