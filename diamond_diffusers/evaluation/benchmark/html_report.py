"""One HTML file with all of a comparison: it needs no other file and runs no script."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...files.foreign_images import load_image
from ..files import plain
from .compare import method_folder
from .plan import Plan, SizedMethod
from .plots import example_keys
from .records import AGAIN, Record, image_path
from .tables import TextTable

THUMBNAIL_SIDE = 192
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 0 0 2rem; font-variant-numeric: tabular-nums; font-size: 13px; }
caption { text-align: left; font-weight: 600; padding: 0.4rem 0; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: bottom; }
th:first-child, td:first-child, td.text { text-align: left; }
.wide { overflow-x: auto; }
img.figure { max-width: 100%; }
img.drawn { width: 96px; image-rendering: pixelated; border: 4px solid transparent; }
img.right { border-color: #1e963c; }
img.wrong { border-color: #c82828; }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 12px; }
"""


def html_report(
    title: str,
    settings: Mapping[str, Any],
    tables: Sequence[TextTable],
    figures: Mapping[str, bytes],
    plan: Plan,
    records: Mapping[str, Sequence[Record]],
    folder: Path,
) -> str:
    """The report.

    Args:
        settings: what all methods share.
        figures: PNG files by what they show.
        records: of each method of the plan.
        folder: of the images.
    """
    budgets = dict.fromkeys(entry.budget for entry in plan.entries)
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(_table(table) for table in tables),
        "<h2>Figures</h2>",
        *(_figure(what, png) for what, png in figures.items()),
        "<h2>Images</h2>",
        *(part for budget in budgets for part in _examples(budget, plan.at(budget), records, folder)),
        "<h2>Settings</h2>",
        f"<pre>{escape(json.dumps(plain(settings), indent=1))}</pre>",
        "<h2>Methods</h2>",
        f"<pre>{escape(json.dumps(plain(plan.entries), indent=1))}</pre>",
    ]
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _table(table: TextTable) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "\n".join(
        "<tr>" + "".join(_cell(name, cell) for name, cell in zip(table.header, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(table.title)}</caption>\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _figure(what: str, png: bytes) -> str:
    return f'<p><img class="figure" alt="{escape(what)}" src="{_inline(png, "png")}"></p>'


def _cell(header: str, text: str) -> str:
    kind = ' class="text"' if header == "reason" else ""
    return f"<td{kind}>{escape(text)}</td>"


def _examples(
    budget: int, methods: Sequence[SizedMethod], records: Mapping[str, Sequence[Record]], folder: Path
) -> Iterator[str]:
    """A grid with a row for each of the first prompts and a column a method."""
    found = {method.label: {record.key: record for record in records[method.label]} for method in methods}
    header = "".join(f"<th>{escape(method.name)}</th>" for method in methods)
    yield f'<div class="wide"><table><caption>Budget {budget}</caption>'
    yield f"<thead><tr><th>prompt</th>{header}</tr></thead>"
    for key in example_keys(records[methods[0].label]):
        cells = [_image(folder, method, found[method.label][key]) for method in methods]
        prompt = found[methods[0].label][key].prompt
        yield f"<tr><td>{escape(prompt)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table></div>"


def _image(folder: Path, method: SizedMethod, record: Record) -> str:
    verdict = "" if record.is_right is None else " right" if record.is_right else " wrong"
    image = load_image(image_path(method_folder(folder, method), record.key), AGAIN)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    picture = io.BytesIO()
    image.convert("RGB").save(picture, format="jpeg", quality=92)
    alt = escape(f"{method.name}: {record.prompt}")
    return (
        f'<img class="drawn{verdict}" alt="{alt}" src="{_inline(picture.getvalue(), "jpeg")}"><br>{record.reward:.4g}'
    )


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
