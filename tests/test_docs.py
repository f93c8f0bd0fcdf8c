"""Python blocks and links of the pages stand, and the examples of public classes run."""

import ast
import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import diamond_diffusers
from diamond_diffusers import DiamondMapPipeline

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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


LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page):
    for file, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), file
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


PUBLIC = {name: getattr(diamond_diffusers, name) for name in diamond_diffusers.__all__}
CLASSES = {name: each for name, each in PUBLIC.items() if isinstance(each, type)}


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_class_has_an_example(name):
    assert "Example:\n" in CLASSES[name].__doc__


class Checker(doctest.OutputChecker):
    """What an example shows has to be so; where it shows nothing, anything may come."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def test_examples_run():
    """On the embedded model."""
    pipe = DiamondMapPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    runner = doctest.DocTestRunner(Checker(), verbose=False, optionflags=doctest.ELLIPSIS)
    report, num_run = [], 0
    for name, each in CLASSES.items():
        found = doctest.DocTestParser().get_doctest(
            each.__doc__, {**PUBLIC, "torch": torch, "pipe": pipe}, name, None, 0
        )
        num_run += len(found.examples) > 0
        runner.run(found, out=report.append)
    assert not report, "".join(report)
    assert num_run >= len(CLASSES) - 1
