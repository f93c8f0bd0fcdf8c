"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import os

import pytest
import torch

from diamond_diffusers.training.checkpoints import Checkpoints
from diamond_diffusers.training.errors import TrainingError


def names(checkpoints: Checkpoints) -> list[str]:
    return [path.name for path in checkpoints.complete()]


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, total_limit=2)
    for step in (5, 10, 100):
        checkpoints.save(step, {"weights": [torch.full((2,), float(step))]})
    assert names(checkpoints) == ["checkpoint-10", "checkpoint-100"]
    found = checkpoints.find("latest")
    assert found.name == "checkpoint-100"
    state = checkpoints.load(found)
    assert state["step"] == 100 and torch.equal(state["weights"][0], torch.full((2,), 100.0))
    assert checkpoints.find("checkpoint-10") == checkpoints.find(str(tmp_path / "checkpoint-10"))
    checkpoints.save(10, {"weights": []})
    assert checkpoints.load(checkpoints.find("checkpoint-10"))["weights"] == []


def test_half_of_one_is_none(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, total_limit=1)
    checkpoints.save(1, {})
    moves = []

    def dies(source, target):
        moves.append(source)
        raise KeyboardInterrupt

    # Between writing and renaming the new one, and between renaming and deleting the old one.
    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, {})
    monkeypatch.undo()
    assert [path.name for path in moves] == ["checkpoint-2.partial"]
    assert names(checkpoints) == ["checkpoint-1"]
    monkeypatch.setattr("shutil.rmtree", lambda path: dies(path, path))
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(3, {})
    monkeypatch.undo()
    assert (tmp_path / "checkpoint-1.old.partial").exists()
    assert names(checkpoints) == ["checkpoint-3"]
    assert names(Checkpoints(tmp_path)) == ["checkpoint-3"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-3"}


def test_there_need_not_be_a_latest_one(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.find("latest") is None
    with pytest.raises(TrainingError, match="is no checkpoint; there are none"):
        checkpoints.find("checkpoint-3")


def test_one_that_cannot_be_read_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {})
    (tmp_path / "checkpoint-1" / "state-0.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"checkpoint-1 cannot be read; resume from another"):
        checkpoints.load(checkpoints.find("latest"))
