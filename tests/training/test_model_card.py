"""What a run of the trainer uploads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.files.output import UnwritableError
from diamond_diffusers.maps.storage import MAP_FILES, load_diamond_map, read_map_config
from diamond_diffusers.training import trainer
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.options.records import DataOptions
from diamond_diffusers.training.trainer import Trainer

from ..hub import Hub, files_in


def test_what_is_pushed_is_what_is_loaded(options, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)
    given = options("--push_to_hub", "--hub_model_id", "my-map", "--hub_token", "secret", "--checkpointing_steps", 1)
    run = Trainer(given)
    run.run()
    pushed = tmp_path / "hub" / "someone" / "my-map"
    assert files_in(pushed) == {*MAP_FILES, "README.md", "samples.png"}
    assert set(hub.tokens) == {"secret"}
    loaded = load_diamond_map(
        DiamondMapPipeline.from_pretrained(given.model.pretrained_model_name_or_path).family, pushed
    )
    for weight, averaged in zip(loaded.weights().values(), run.average.shadow_params, strict=True):
        assert torch.equal(weight, averaged)
    card = ModelCard.load(pushed / "README.md")
    assert 'from_pretrained("someone/my-map"' in card.text
    assert "Rows: the teacher, by GLASS in 32 steps; then the map in one, two and four steps." in card.text
    assert "| loss | lagrangian |" in card.text
    assert not any(
        "secret" in file.read_text(errors="ignore") for file in given.output.output_dir.rglob("*") if file.is_file()
    )


def test_a_failing_upload_leaves_the_finished_map(options, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)
    given = options("--push_to_hub", "--max_train_steps", 1)
    run = Trainer(given)
    # Before the first step.
    assert (tmp_path / "hub" / "someone" / "out").is_dir()

    def fails(**options):
        raise ConnectionError("no route to host")

    hub.upload_folder = fails
    with pytest.raises(TrainingError, match=r"is complete, but pushing it to someone/out failed \(no route to host\)"):
        run.run()
    assert {*MAP_FILES, "README.md", "samples.png"} <= files_in(given.output.output_dir)


def test_what_fails_on_the_last_step_leaves_the_former_map(options, tmp_path, monkeypatch):
    given = options("--max_train_steps", 1, "--checkpointing_steps", 1)
    Trainer(given).run()
    written = {name: (given.output.output_dir / name).read_bytes() for name in files_in(given.output.output_dir)}
    assert all((given.output.output_dir / name).stat().st_mode & 0o044 == 0o044 for name in MAP_FILES)

    def fails(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "write_model_card", fails)
    again = options("--max_train_steps", 1, "--resume_from_checkpoint", "latest", "--seed", given.machine.seed)
    with pytest.raises(UnwritableError, match=r"out' cannot be written \(No space left on device\)"):
        Trainer(again).run()
    assert {
        name: (given.output.output_dir / name).read_bytes() for name in files_in(given.output.output_dir)
    } == written


def test_a_folder_of_images_need_not_have_a_name_of_text(options, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    Image.new("RGB", (16, 16)).save(folder / "a.png")
    (folder / "a.txt").write_text("a ring")
    given = options("--max_train_steps", 1)
    given = replace(given, data=DataOptions(train_data_dir=folder))
    Trainer(given).run()
    assert read_map_config(given.output.output_dir)["training"]["data"] == r"caf\udce9"
    assert r"| data | caf\\udce9 |" in (given.output.output_dir / "README.md").read_text()


def test_a_repository_that_cannot_be_created_is_known_before_training(options, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)

    def fails(*arguments, **options):
        raise ConnectionError("unauthorized")

    hub.create_repo = fails
    monkeypatch.setattr(Trainer, "_build_map", lambda self: pytest.fail("loaded the base"))
    with pytest.raises(TrainingError, match=r"cannot create the repository x/y \(unauthorized\); log in with"):
        Trainer(options("--push_to_hub", "--hub_model_id", "x/y"))
