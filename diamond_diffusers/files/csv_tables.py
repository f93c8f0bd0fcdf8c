"""Tables as CSV that a spreadsheet shows as they are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from .foreign import writable

_FORMULA = re.compile(r"[\s\0\ufeff\u200b-\u200f]*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""How what a spreadsheet evaluates begins: some leave out what is not seen, or take full-width signs for others."""


def csv_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in which `'` is put before texts that a spreadsheet would take for formulas; numbers stay numbers."""
    return "".join(map(_line, [columns, *rows]))


def _line(row: Sequence[Any]) -> str:
    text = io.StringIO()
    # Only what is in the end of a line is sure to be put into quotes within a cell.
    csv.writer(text, lineterminator="\r\n").writerow([_cell(value) for value in row])
    return text.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    # Names of files need not be text.
    text = writable(str(value))
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
