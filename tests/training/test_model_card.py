"""The model card, and what is uploaded with it."""

from __future__ import annotations

import json
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, RepoUrl
from PIL import Image

from diamond_diffusers.models.storage import CONFIG_NAME, MAP_FILES, load_diamond_map
from diamond_diffusers.pipelines import DiamondMapPipeline
from diamond_diffusers.training import model_card
from diamond_diffusers.training.distill import Distillation
from diamond_diffusers.training.model_card import write_model_card


class Hub:
    """Stands for `HfApi`: keeps the files that it is given."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tokens = folder, []

    def __call__(self, token=None):
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id, exist_ok):
        return RepoUrl(f"https://huggingface.co/{repo_id if '/' in repo_id else 'someone/' + repo_id}")

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        target = self.folder / repo_id
        target.mkdir(parents=True)
        for file in Path(folder_path).rglob("*"):
            name = file.relative_to(folder_path).as_posix()
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target / name)


def test_what_is_pushed_is_what_is_loaded(options, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(model_card, "HfApi", hub)
    given = options("--push_to_hub", "--hub_model_id", "my-map", "--hub_token", "secret", "--checkpointing_steps", 1)
    run = Distillation(given)
    run.run()
    pushed = tmp_path / "hub" / "someone" / "my-map"
    assert {file.name for file in pushed.iterdir()} == {*MAP_FILES, "README.md", "samples.png"}
    assert set(hub.tokens) == {"secret"}
    loaded = load_diamond_map(DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path).backbone, pushed)
    for weight, averaged in zip(loaded.weights().values(), run.average.shadow_params, strict=True):
        assert torch.equal(weight, averaged)
    card = ModelCard.load(pushed / "README.md")
    assert 'from_pretrained("someone/my-map")' in card.text
    assert not any(
        "secret" in file.read_text(errors="ignore") for file in given.output_dir.rglob("*") if file.is_file()
    )


@pytest.fixture
def folder(options):
    given = options("--max_train_steps", 1)
    Distillation(given).run()
    return given.output_dir


def set_base(folder: Path, name: str) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "base_model": name}))


def test_the_card_says_what_the_hub_asks_for(folder):
    set_base(folder, "black-forest-labs/FLUX.1-dev")
    prompt = 'a sign that says "open | closed"\nby the sea'
    write_model_card(folder, "someone/map", "apache-2.0", prompt, Image.new("RGB", (8, 8)))
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == "black-forest-labs/FLUX.1-dev"
    assert (data["library_name"], data["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert (data["license"], "diamond-maps" in data["tags"]) == ("apache-2.0", True)
    assert "samples.png" in card.text and (folder / "samples.png").exists()
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", card.text, re.MULTILINE))
    assert (rows["steps"], rows["rank"], rows["loss"]) == ("1", "2", "lagrangian")
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    compile(snippet, "card", "exec")
    assert "by the sea" in snippet


def test_a_folder_on_this_machine_is_not_named_as_the_base(folder):
    write_model_card(folder, "someone/map", "other")
    assert ModelCard.load(folder / "README.md").data.base_model is None
