"""The benchmark of remote rewards compares runs of the same bits."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks.remote_reward import app


@pytest.mark.slow
def test_all_ways_to_ask_have_the_same_bits():
    result = CliRunner().invoke(app, ["--delay", "0.02", "--num-particles", "3", "--json"])
    assert result.exit_code == 0, result.output
    timings = json.loads(result.stdout)
    assert [timing["is_same"] for timing in timings] == [True] * 3
    # Each of the images, and the trial.
    assert [timing["requests"] for timing in timings] == [4] * 3
