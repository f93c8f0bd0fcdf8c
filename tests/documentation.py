"""Figures that documents state, for the tests that measure them."""

from pathlib import Path

METHODS = Path(__file__).parents[1] / "docs" / "methods.md"


def documented(heading: str, document: Path = METHODS) -> list[list[str]]:
    """The rows of the one table whose first heading is this, as lists of cells without their marks."""
    lines = document.read_text(encoding="utf-8").splitlines()
    (start,) = (index for index, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows
