"""Tables that others wrote, as CSV or as lines of JSON; each row comes with the place that it is from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from os import PathLike
from typing import Any

from .foreign import ForeignFileError, parse_json, read_lines, read_text


def read_csv(path: str | PathLike[str]) -> tuple[list[str], Iterator[tuple[str, dict[str, str]]]]:
    """The columns of a file of CSV, and its rows, each with its place such as "line 3 of 'prompts.csv'".

    Raises:
        ForeignFileError: as `read_text`; and while rows are read, for one that is no CSV or has not a cell a column.
    """
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    columns = [name.strip() for name in _next_row(reader, path) or []]
    repeated = [name for position, name in enumerate(columns) if name and name in columns[:position]]
    if repeated:
        raise ForeignFileError(f"'{path}' has two columns {repeated[0]!r}; rename one")
    return columns, _rows(reader, columns, path)


def _rows(reader: Any, columns: list[str], path: str | PathLike[str]) -> Iterator[tuple[str, dict[str, str]]]:
    while (row := _next_row(reader, path)) is not None:
        place = f"line {reader.line_num} of '{path}'"
        if len(row) != len(columns):
            raise ForeignFileError(
                f"{place} has {len(row)} cells for {len(columns)} columns; give one each, those with commas in quotes"
            )
        yield place, dict(zip(columns, row, strict=True))


def _next_row(reader: Any, path: str | PathLike[str]) -> list[str] | None:
    """The next one that has cells."""
    try:
        return next((row for row in reader if row), None)
    except csv.Error as error:
        raise ForeignFileError(
            f"line {reader.line_num} of '{path}' is no CSV ({error}); put texts with commas or line ends in quotes, "
            "and write a quote in them twice"
        ) from error


def read_json_lines(path: str | PathLike[str], remedy: str) -> Iterator[tuple[int, str, Any]]:
    """The values of a file with one in each line: the number of the line from 1 on, its place, and the value.

    Raises:
        ForeignFileError: as `read_text` and `parse_json`, the latter with `remedy`.
    """
    for number, line in read_lines(path):
        place = f"line {number} of '{path}'"
        yield number, place, parse_json(line, place, remedy)
