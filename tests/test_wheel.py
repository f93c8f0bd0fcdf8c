"""The wheel holds the package and what it reads at run time, and nothing else of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from setuptools.config.setupcfg import read_configuration

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diamond_diffusers"


@pytest.fixture(scope="module")
def options() -> dict:
    """What setuptools makes of the options of setup.cfg."""
    with pytest.MonkeyPatch.context() as patch:
        # Packages are looked for in the current folder.
        patch.chdir(ROOT)
        return read_configuration(ROOT / "setup.cfg")["options"]


def test_all_modules_of_the_package_are_in_the_wheel_and_no_others(options: dict) -> None:
    folders = {file.parent.relative_to(ROOT) for file in PACKAGE.rglob("*.py")}
    assert {name.replace(".", "/") for name in options["packages"]} == {folder.as_posix() for folder in folders}


def test_all_data_of_the_package_are_in_the_wheel(options: dict) -> None:
    """The embedded weights with their model cards, and the mark of a typed package."""
    found = set()
    for name, patterns in options["package_data"].items():
        folder = ROOT / name.replace(".", "/")
        found |= {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    files = {file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert found == {file for file in files if file.suffix != ".py"}
    for file in ("py.typed", "miniature/weights/pipeline/model_index.json", "miniature/weights/clip/model.safetensors"):
        assert PACKAGE / file in found
