"""The example of judges in stages runs on the embedded model."""

import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "staged_judges.py"


@pytest.mark.slow
def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path(str(EXAMPLE))
    assert (tmp_path / "three_stars.png").exists() and "is_right" in capsys.readouterr().out
    # Three of the eight that the sum has scored.
    assert list(made["out"].stage_calls.values()) == [8, 3]
