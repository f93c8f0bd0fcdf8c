"""Python blocks of README.md and docs/ compile, and every name that they use is defined or imported there."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^ *```python.*?\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_of_a_page_stand_on_their_own(page):
    """Or on those before them."""
    source = "\n".join(dedent(block) for block in BLOCK.findall(page.read_text(encoding="utf-8")))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    checked = subprocess.run(command, input=source, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    for node in ast.walk(compile(source, page.name, "exec", ast.PyCF_ONLY_AST)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("diamond_diffusers"):
            module = import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
