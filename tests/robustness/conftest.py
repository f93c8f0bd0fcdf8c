"""Counts of the cases by kind, printed at the end of a run of these files, and the pipelines that cases call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from .judging import Tally

PROPERTY = "robustness"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`-m robustness` runs all of these tests; a run without it leaves out those that bear the mark."""
    if "not robustness" not in config.option.markexpr:
        for item in items:
            if item.path.is_relative_to(config.rootpath / "tests" / "robustness"):
                item.add_marker("robustness")


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The counts of a test, of the kind that its file is named after."""
    counted = Tally(request.node.path.stem.removeprefix("test_"))
    yield counted
    request.node.user_properties.append((PROPERTY, (counted.kind, dict(counted.counts))))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: dict[str, Counter[str]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for name, found in report.user_properties:
                    if name == PROPERTY:
                        counts.setdefault(found[0], Counter()).update(found[1])
    if counts:
        terminalreporter.section("cases")
        kinds = ("understood", "refused", "failing")
        terminalreporter.write_line(f"{'':14}" + "".join(f"{kind:>12}" for kind in kinds))
        total = sum(counts.values(), Counter())
        for name, found in [*sorted(counts.items()), ("all", total)]:
            terminalreporter.write_line(f"{name:14}" + "".join(f"{found[kind]:>12}" for kind in kinds))


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Torch's random state and threads are as before."""
    with torch.random.fork_rng(devices=[]):
        yield
