"""What a run of the trainer uploads."""

from __future__ import annotations

import torch
from huggingface_hub import ModelCard

from diamond_diffusers.models.storage import MAP_FILES, load_diamond_map
from diamond_diffusers.pipelines import DiamondMapPipeline
from diamond_diffusers.training.distill import Distillation

from ..hub import Hub, files_in


def test_what_is_pushed_is_what_is_loaded(options, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub", monkeypatch)
    given = options("--push_to_hub", "--hub_model_id", "my-map", "--hub_token", "secret", "--checkpointing_steps", 1)
    run = Distillation(given)
    run.run()
    pushed = tmp_path / "hub" / "someone" / "my-map"
    assert files_in(pushed) == {*MAP_FILES, "README.md", "samples.png"}
    assert set(hub.tokens) == {"secret"}
    loaded = load_diamond_map(DiamondMapPipeline.from_pretrained(given.pretrained_model_name_or_path).backbone, pushed)
    for weight, averaged in zip(loaded.weights().values(), run.average.shadow_params, strict=True):
        assert torch.equal(weight, averaged)
    card = ModelCard.load(pushed / "README.md")
    assert 'from_pretrained("someone/my-map"' in card.text
    assert "Rows: one evaluation, four evaluations." in card.text
    assert "| loss | lagrangian |" in card.text
    assert not any(
        "secret" in file.read_text(errors="ignore") for file in given.output_dir.rglob("*") if file.is_file()
    )
