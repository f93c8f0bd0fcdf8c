"""One HTML file with all of a comparison: it needs no other file and runs no script."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...files.foreign_images import load_image
from ..files import plain
from ..text_tables import TextTable
from .compare import method_folder
from .plan import Plan, SizedMethod
from .plots import example_keys
from .records import AGAIN, Record, image_path

THUMBNAIL_SIDE = 192
TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class ShownImage:
    """An image within the page.

    Attributes:
        verdict: "right" or "wrong" where a judge has decided, else empty.
        what: what the image shows.
        source: the image itself, as a data URL.
        reward: as text.
    """

    verdict: str
    what: str
    source: str
    reward: str


@dataclass(frozen=True)
class Grid:
    """The first prompts as drawn by every method of a budget, with one column for each method."""

    budget: float
    names: list[str]
    rows: list[tuple[str, list[ShownImage]]]


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
        settings: the settings that all methods share.
        figures: PNG files by their titles.
        records: the records of each method of the plan.
        folder: folder of the images.
    """
    loader = PackageLoader(__package__, "")
    # Prompts and reasons are texts of others, whose signs must not become part of the page.
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    budgets = dict.fromkeys(entry.budget for entry in plan.entries)
    return environment.get_template(TEMPLATE).render(
        title=title,
        tables=tables,
        figures={what: _inline(png, "png") for what, png in figures.items()},
        grids=[_grid(budget, plan.at(budget), records, folder) for budget in budgets],
        settings=json.dumps(plain(settings), indent=1),
        methods=json.dumps(plain(plan.entries), indent=1),
    )


def _grid(budget: float, methods: Sequence[SizedMethod], records: Mapping[str, Sequence[Record]], folder: Path) -> Grid:
    found = {method.label: {record.key: record for record in records[method.label]} for method in methods}
    rows = []
    for key in example_keys(records[methods[0].label]):
        shown = [_shown(folder, method, found[method.label][key]) for method in methods]
        rows.append((found[methods[0].label][key].prompt, shown))
    return Grid(budget, [method.name for method in methods], rows)


def _shown(folder: Path, method: SizedMethod, record: Record) -> ShownImage:
    verdict = "" if record.is_right is None else "right" if record.is_right else "wrong"
    image = load_image(image_path(method_folder(folder, method), record.key), AGAIN)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    picture = io.BytesIO()
    image.convert("RGB").save(picture, format="jpeg", quality=92)
    source = _inline(picture.getvalue(), "jpeg")
    return ShownImage(verdict, f"{method.name}: {record.prompt}", source, f"{record.reward:.4g}")


def _inline(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
