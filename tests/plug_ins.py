"""Installed distributions that offer parts of their own by entry points."""

from pathlib import Path

import pytest


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, entry_points: str) -> None:
    """Makes a folder of modules an installed distribution.

    Args:
        folder: where the modules are.
        name: of the distribution.
        entry_points: the text of its `entry_points.txt`.
    """
    information = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entry_points)
    monkeypatch.syspath_prepend(str(folder))
