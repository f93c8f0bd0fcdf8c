"""Checkpoints are there whole or not at all."""

from __future__ import annotations

import os

import pytest
import torch

from diamond_diffusers.files.output import UnwritableError
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


def test_the_one_just_written_is_kept_whatever_its_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, total_limit=2)
    for step in (1000, 2000, 500):
        checkpoints.save(step, {})
    assert names(checkpoints) == ["checkpoint-500", "checkpoint-2000"]
    alone = Checkpoints(tmp_path, total_limit=1)
    alone.save(600, {})
    assert names(alone) == ["checkpoint-600"]


def test_one_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    replace = os.replace

    def dies(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        replace(source, target)

    Checkpoints(tmp_path).save(5, {"weights": 1})
    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path).save(5, {"weights": 2})
    monkeypatch.undo()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load(checkpoints.find("latest"))["weights"] == 1
    checkpoints.save(5, {"weights": 3})
    (tmp_path / "checkpoint-5.replaced").mkdir()
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load(checkpoints.find("latest"))["weights"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-5"}


def test_a_run_does_not_start_behind_another(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.check_none_is_ahead(0)
    checkpoints.save(5, {})
    checkpoints.check_none_is_ahead(5)
    with pytest.raises(
        TrainingError, match=r"holds checkpoint-5 already, and this run starts at step 4; give --resume"
    ):
        checkpoints.check_none_is_ahead(4)


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


@pytest.mark.parametrize("content", [[1], {"weights": 1}, {"step": "2"}, {"step": True}])
def test_one_that_is_no_state_is_named(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {})
    torch.save(content, tmp_path / "checkpoint-1" / "state-0.pt")
    with pytest.raises(TrainingError, match=r"checkpoint-1 holds no state of a run; resume from another"):
        checkpoints.load(checkpoints.find("latest"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"weights": 1})
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda state, file: save(state, "/dev/full"))
    with pytest.raises(UnwritableError, match=r"checkpoint-2' cannot be written .*; make room"):
        checkpoints.save(2, {"weights": torch.zeros(100_000)})
    monkeypatch.undo()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1"}
    assert checkpoints.load(checkpoints.find("latest"))["weights"] == 1

    def fails(folder):
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        checkpoints.save(2, {}, fails)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "run"):
        with pytest.raises(UnwritableError, match=r"out.*' cannot be written"):
            Checkpoints(folder)
    assert (tmp_path / "out").read_text() == "mine"


def test_what_the_user_has_beside_them_stays(tmp_path):
    for name in ("checkpoint-notes.partial", "checkpoint-1.partial.txt", "checkpoint-old.replaced"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("mine")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.complete() == [] and len(list(tmp_path.iterdir())) == 4
