"""What is changed is handed to the trainer, stage by stage, and the table shows what came out."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from typer.testing import CliRunner

from benchmarks import distillation_levers
from benchmarks.distillation_levers import LEVERS, Levers, Stage, app, numbers_of, table
from diamond_diffusers.pipelines.map_accuracy import LawAccuracy, MapAccuracy
from diamond_diffusers.training.options.parser import parse_options


def accuracy(distance):
    laws = [LawAccuracy("map, 1 step", 0.5, distance, 0.1, 0.9, 0.01), LawAccuracy("GLASS, 4 steps", 0.5, 0.2, 0, 1, 0)]
    return MapAccuracy(2, 2, 32, laws)


@pytest.fixture
def runs(monkeypatch):
    """The options of each run of the trainer, in place of the runs."""
    made = []
    monkeypatch.setattr(distillation_levers.subprocess, "run", lambda command, check: made.append(command[3:]))
    return made


@pytest.mark.parametrize("name", LEVERS)
def test_the_trainer_understands_every_lever(name, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation_levers, "read_map_config", lambda folder: {"training": {}})
    monkeypatch.setattr(MapAccuracy, "read", lambda facts: accuracy(1.0))
    Levers(tmp_path, 40, 96, 2, 2).accuracy(3, LEVERS[name])
    parsed = [parse_options(run) for run in runs]
    assert len(parsed) == len(LEVERS[name])
    assert [options.validation.validation_metrics for options in parsed] == [False] * (len(parsed) - 1) + [True]
    assert sum(options.updates.max_train_steps for options in parsed) == 40 * (2 if "twice" in name else 1)
    first, *later = parsed
    assert first.map.initial_map is None
    assert [options.map.initial_map for options in later] == [str(tmp_path / "lever-3-0")] * len(later)


def test_what_is_complete_is_not_run_again(runs, tmp_path):
    folder = tmp_path / "lever-0-0"
    folder.mkdir()
    (folder / "diamond_map_config.json").write_text("{}")
    with pytest.raises(ValueError, match="diamond_map_config"):
        Levers(tmp_path, 4, 96, 2, 2).accuracy(0, (Stage(),))
    assert not runs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, None),
        ({"num_updates": 8}, "with 4 steps in place of 8"),
        ({"num_rows": 48}, "with 96 rows in place of 48"),
        ({"num_samples": 5}, "with 2 samples in place of 5"),
    ],
)
def test_runs_of_another_comparison_are_not_taken_for_those_of_this_one(runs, tmp_path, monkeypatch, changed, message):
    facts = {"steps": 4, "rows": 96, "accuracy": asdict(accuracy(1.0))}
    monkeypatch.setattr(distillation_levers, "read_map_config", lambda folder: {"training": facts})
    (tmp_path / "lever-0-0").mkdir()
    (tmp_path / "lever-0-0" / "diamond_map_config.json").touch()
    settings = {"num_updates": 4, "num_rows": 96, "num_observations": 2, "num_samples": 2, **changed}
    levers = Levers(tmp_path, **settings)
    if message is None:
        assert levers.accuracy(0, (Stage(),)) == accuracy(1.0)
    else:
        with pytest.raises(ValueError, match=f"holds lever-0-0 of another comparison, {message}; name another folder"):
            levers.accuracy(0, (Stage(),))
    assert not runs


@pytest.mark.parametrize("only", [f"0,{len(LEVERS)}", "-1", "first", ""])
def test_changes_that_are_not_there_are_refused(only):
    with pytest.raises(ValueError, match=f"give numbers from 0 to {len(LEVERS) - 1}, separated by commas"):
        numbers_of(only)
    assert numbers_of("12, 0,12") == [0, 12]


def test_the_table_shows_a_teacher_once():
    shown = table({"first": accuracy(1.0), "second": accuracy(0.5)}).splitlines()
    assert shown[2:] == [
        "| first: map, 1 step | 1.00 (0.90) |",
        "| first: GLASS, 4 steps | 0.20 (1.00) |",
        "| second: map, 1 step | 0.50 (0.90) |",
    ]


@pytest.mark.slow
def test_levers_in_earnest(tmp_path):
    arguments = ["--steps", "4", "--rows", "48", "--observations", "2", "--samples", "2", "--only", "0,12"]
    for _ in range(2):
        result = CliRunner().invoke(app, ["--output", str(tmp_path), *arguments])
        assert result.exit_code == 0 and result.output.count("map, 1 step") == 2, result.output
    config = json.loads((tmp_path / "lever-12-1" / "diamond_map_config.json").read_text())
    assert config["training"]["loss"] == "lagrangian" and config["training"]["initial_map"].endswith("lever-12-0")
