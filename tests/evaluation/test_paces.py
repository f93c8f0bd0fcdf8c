"""Methods are timed once, and their times planned with."""

import json
from contextlib import nullcontext
from itertools import count

import pytest

from diamond_diffusers import BestOfN, NoAlignment
from diamond_diffusers.evaluation.benchmark import paces as module
from diamond_diffusers.evaluation.benchmark.compare import Setup
from diamond_diffusers.evaluation.benchmark.paces import FILE, measured_paces
from diamond_diffusers.evaluation.benchmark.plan import SizedMethod
from diamond_diffusers.evaluation.benchmark.prompts import miniature_suite
from diamond_diffusers.evaluation.clock import CPUTime
from diamond_diffusers.rewards import CallableReward

from ..conftest import redness

SIZES = {
    "plain": SizedMethod("plain", NoAlignment(), 3, 6),
    "best": SizedMethod("best", BestOfN(num_particles=2), 3, 12),
}


@pytest.fixture
def setup(tiny_pipe):
    return Setup(tiny_pipe, "tiny", miniature_suite(), CallableReward(redness, differentiable=True), batch_size=2)


def test_the_least_time_of_an_evaluation_is_kept(setup, tmp_path, monkeypatch):
    # Each draw takes a second more than the one before.
    seconds, timed = count(1), []
    monkeypatch.setattr(module, "cpu_time", lambda device: nullcontext(CPUTime(next(seconds))))
    found = measured_paces(setup, SIZES, setup.suite.first(3), tmp_path, timed.append)
    assert timed == ["plain_6", "best_12", "plain_6", "best_12"]
    # Two images of 6 and of 12 evaluations, in one and in two seconds.
    assert found == {"plain": pytest.approx(1 / 12), "best": pytest.approx(2 / 24)}
    # A further method is timed alone; what was timed stays.
    sizes = {**SIZES, "more": SizedMethod("more", BestOfN(num_particles=3), 3, 18)}
    again = measured_paces(setup, sizes, setup.suite.first(3), tmp_path, timed.append)
    assert timed[4:] == ["more_18", "more_18"] and again.items() > found.items()


def test_shards_that_start_together_plan_with_the_same_times(setup, tmp_path, monkeypatch):
    found = []

    def started_meanwhile(*of):
        if not (tmp_path / FILE).exists():
            # Another shard, which comes to its end while this one is timing.
            monkeypatch.setattr(module, "_seconds", lambda *of: 1.0)
            found.append(measured_paces(setup, SIZES, setup.suite.first(1), tmp_path))
            monkeypatch.setattr(module, "_seconds", started_meanwhile)
        return 2.0

    monkeypatch.setattr(module, "_seconds", started_meanwhile)
    found.append(measured_paces(setup, SIZES, setup.suite.first(1), tmp_path))
    assert found == [{"plain": 1.0, "best": 1.0}] * 2


def test_times_of_another_machine_are_refused(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_seconds", lambda *of: 1.0)
    assert measured_paces(setup, SIZES, setup.suite.first(1), tmp_path) == {"plain": 1.0, "best": 1.0}
    stored = json.loads((tmp_path / FILE).read_text())
    for changed, message in (
        (
            {"device": "abacus"},
            r"device is '.*', but '.*seconds.json' holds times of 'abacus'; choose another --output",
        ),
        ({"num_threads": 99}, "num_threads is [0-9]+, but .* holds times of 99"),
        ({"seconds": {"plain_6": "fast"}}, "seconds.plain_6 of '.*' is 'fast' in place of a number"),
    ):
        (tmp_path / FILE).write_text(json.dumps(stored | changed))
        with pytest.raises(ValueError, match=message):
            measured_paces(setup, SIZES, setup.suite.first(1), tmp_path)
