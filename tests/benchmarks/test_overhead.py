"""What a guided step costs beyond its evaluations, and beside the authors' step, is measured on those evaluations."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import look_aheads
from benchmarks.overhead import Evaluations, Overhead, app, leaves_of, upper_bound


def test_the_command_measures_steps_and_their_evaluations() -> None:
    result = CliRunner().invoke(app, ["--families", "flux", "--repetitions", "2", "--json", "--device", "cpu"])
    (measured,) = json.loads(result.output)
    assert [len(measured[name]) for name in ("steps", "bare", "answered")] == [2, 2, 2]
    assert measured["overhead"] == pytest.approx((sum(measured["steps"]) - sum(measured["bare"])) / 2)
    assert measured["bound"] >= measured["overhead"]


def test_the_bound_is_that_of_a_one_sided_interval() -> None:
    # Of Student's t with one degree of freedom, 95 % are below 6.3138.
    assert upper_bound([1.0, 3.0]) == pytest.approx(2 + 6.3138, abs=1e-3)
    assert Overhead("flux", (3.0, 5.0), (1.0, 1.0), ()).mean == 3


def test_evaluations_are_repeated_with_what_was_differentiated_and_answered_with_a_graph() -> None:
    calls = []

    def network(x: torch.Tensor) -> torch.Tensor:
        calls.append(x.requires_grad and torch.is_grad_enabled())
        return 2 * x

    evaluations = Evaluations()
    watched = evaluations.seen(network)
    x = torch.ones(2, requires_grad=True)
    watched(x), watched(x.detach())
    assert [len(leaves_of(evaluation)) for evaluation in evaluations.asked] == [1, 0]
    evaluations.repeat()
    assert calls == [True, False, True, False]
    evaluations.watches = False
    watched(x)
    assert len(calls) == 5 and len(evaluations.asked) == 2
    evaluations.answers = True
    assert watched(x).requires_grad and len(calls) == 5


@pytest.mark.parametrize(
    ("two_times", "with_terms", "forwards", "backwards"), [(True, True, 2, 2), (False, True, 1, 2), (True, False, 1, 1)]
)
def test_a_step_evaluates_its_look_aheads_as_often_as_is_said(monkeypatch, two_times, with_terms, forwards, backwards):
    monkeypatch.setattr(look_aheads, "PIXELS", 32)
    monkeypatch.setattr(look_aheads, "TOKENS", 4)
    ours, theirs = look_aheads.measure(1, two_times, with_terms)
    # The state itself is evaluated too.
    assert (ours.forwards, ours.backwards) == (forwards + 1, backwards)
    assert (theirs.forwards, theirs.backwards) == (4, 2)
