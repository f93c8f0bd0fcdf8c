"""What the trainer says where it cannot start."""

from __future__ import annotations

import json

import datasets
import huggingface_hub
import pytest

from diamond_diffusers.training import distill
from diamond_diffusers.training.distill import Distillation
from diamond_diffusers.training.errors import TrainingError


@pytest.fixture
def offline(monkeypatch):
    """Where the Hub would be asked again and again before it is given up."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("--use_8bit_adam",), "--use_8bit_adam needs the package bitsandbytes"),
        (("--optimizer", "prodigy"), "--optimizer prodigy needs the package prodigyopt"),
        (("--report_to", "wandb"), "--report_to wandb needs the package wandb"),
        (("--dataset_name", "nothing"), "--dataset_name nothing cannot be loaded"),
        (("--resume_from_checkpoint", "checkpoint-3"), "--resume_from_checkpoint checkpoint-3 is no checkpoint"),
    ],
)
def test_what_is_cheap_to_know_is_known_before_the_base_is_loaded(
    options, monkeypatch, tmp_path, offline, further, message
):
    # A folder is no package.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(distill, "load_base", lambda *arguments: pytest.fail("loaded the base"))
    with pytest.raises(TrainingError, match=message):
        Distillation(options(*further))


def test_the_command_says_what_is_wrong_in_one_line(tiny_folder, tmp_path, monkeypatch, offline):
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    shared = ["--dataset_name", "miniature", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    for name, message in (
        (str(folder), "pipeline is a KandinskyPipeline, for which there is no backbone"),
        ("no/such", "no/such does not appear to have a file named model_index.json"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: --pretrained_model_name_or_path {name} cannot be .*{message}"):
            distill.main([*shared, "--pretrained_model_name_or_path", name])
    tiny = [*shared, "--pretrained_model_name_or_path", str(tiny_folder)]
    for further, message in (
        (("--lora_layers", "to_q, to_z"), "--lora_layers names 'to_z', which no module of the Flux"),
        (("--resolution", "20"), "--resolution is 20; the flux model takes multiples of 8"),
        (("--license", "mit\n---"), "license is 'mit.*give a licence as the Hub names it"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: {message}"):
            distill.main([*tiny, *further])
    # What the options are not to blame for has a traceback.
    monkeypatch.setattr(Distillation, "run", lambda self: {}["bug"])
    with pytest.raises(KeyError):
        distill.main(tiny)
