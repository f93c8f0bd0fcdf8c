"""Every command of docs/distil_sd15.md, in its order, on tiny random models with ten updates."""

from __future__ import annotations

import os
import re
import shlex
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch
import typer
from typer.main import get_command
from typer.testing import CliRunner

from benchmarks import distillation_plan
from benchmarks.zoo.flux import build_tiny_flux
from benchmarks.zoo.sana import build_tiny_sana
from benchmarks.zoo.stable_diffusion import build_tiny_stable_diffusion
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.cli.main import app
from diamond_diffusers.maps.map_config import read_map_config
from diamond_diffusers.pipelines.model_card import MAP_REPOSITORY
from diamond_diffusers.rewards import REWARDS
from diamond_diffusers.training import distill
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.trainer import Trainer

from ..conftest import redness
from ..hub import Hub, files_in
from .processes import in_child

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "distil_sd15.md").read_text(encoding="utf-8")
TRAINER = "diamond_diffusers.training.distill"
SMALL = """
--max_train_steps 10 --train_batch_size 2 --checkpointing_steps 4 --validation_steps 5 --num_validation_images 1
--rank 2 --teacher_num_inference_steps 2
"""
MODELS = {
    "stable_diffusion_captions.yaml": (build_tiny_stable_diffusion, {"variant": "fp16"}, "--resolution 16"),
    "sana.yaml": (build_tiny_sana, {}, "--resolution 32"),
    "flux.yaml": (lambda: build_tiny_flux(guidance_embeds=True), {}, "--resolution 16 --max_sequence_length 12"),
}
"""By configuration: the tiny model, how it is saved, and what its size changes."""
FEW_SAMPLES = "--num-observations 2 --num-samples 4 --levels 0.5,1.0"


def commands() -> list[list[str]]:
    """The words of each command."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [shlex.split(line) for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def command_of(module: str) -> typer.Typer:
    """What `python -m` runs."""
    name = module if not hasattr(import_module(module), "__path__") else f"{module}.__main__"
    return import_module(name).app


def trainer_arguments(words: list[str]) -> list[str] | None:
    """What follows the trainer's name, if the command starts it."""
    return words[words.index(TRAINER) + 1 :] if TRAINER in words else None


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_every_command_has_the_options_that_it_names(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if (arguments := trainer_arguments(words)) is not None:
        assert parse_options(arguments).loss.name == "trajectories"
        if "--config_file" in words:
            assert Path(words[words.index("--config_file") + 1]).exists()
    elif words[:2] == ["python", "-m"]:
        get_command(command_of(words[2])).make_context(words[2], words[3:])
    elif words[0] == "diamond-diffusers":
        get_command(app).commands[words[1]].make_context(words[1], words[2:])
    else:
        assert words == ["wc", "-l", "captions.txt"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as the root of the repository is to a user, with captions and tiny models in place of the real ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    captions = ("a red circle", "two blue stars", "a ring", "a green heart", "three yellow squares")
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    for config, (build, saved, _) in MODELS.items():
        build().save_pretrained(tmp_path / "bases" / config, **saved)
    monkeypatch.setitem(REWARDS._entries, "clip", redness)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    counts = distillation_plan.distillation_counts
    monkeypatch.setattr(
        distillation_plan, "distillation_counts", lambda model, pixels, rank: counts(model, 64, 2, "tiny", "cpu")
    )
    return tmp_path


def train(arguments: list[str]) -> None:
    config = Path(arguments[arguments.index("--config") + 1]).name
    base = ["--pretrained_model_name_or_path", f"bases/{config}"]
    distill.main([*arguments, *SMALL.split(), *base, *MODELS[config][2].split()])


def killed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in a process that dies in its seventh update."""
    update = Trainer._update

    def die(run, source):
        return os.kill(os.getpid(), signal.SIGKILL) if run.step == 6 else update(run, source)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", die)
        assert os.WTERMSIG(in_child(lambda: train(arguments))) == signal.SIGKILL


def run(words: list[str]) -> str:
    """Runs a command that is not the trainer's, and returns what it prints."""
    if words[0] == "wc":
        return ""
    if words[0] == "diamond-diffusers":
        result = CliRunner().invoke(app, words[1:])
    else:
        few = FEW_SAMPLES.split() if words[2] == "benchmarks.posteriors" else []
        result = CliRunner().invoke(command_of(words[2]), [*words[3:], *few])
    assert result.exit_code == 0, result.output
    return result.output


def run_python() -> None:
    """The blocks of Python, on the CPU."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    exec(block.replace('"cuda"', '"cpu"'), {})


@pytest.mark.slow
def test_the_page_leads_to_a_map_on_the_hub(place, monkeypatch):
    hub = Hub(place / "hub", monkeypatch)
    trained = 0
    for words in commands():
        arguments = trainer_arguments(words)
        if arguments is None:
            run(words)
            continue
        given = parse_options(arguments)
        output, resumes = given.output.output_dir, given.checkpoints.resume_from_checkpoint is not None
        is_run = given.updates.max_train_steps > 10
        if is_run and not resumes and output.name == "sd15":
            killed(arguments, monkeypatch)
            assert (output / "checkpoint-4").exists() and not (output / "README.md").exists()
            continue
        train(arguments)
        trained += 1
        facts = read_map_config(output)["training"]
        assert facts["steps"] == 10 and facts["data"] == "samples of the base at prompts"
        assert {*MAP_REPOSITORY} <= files_in(output)
        if output.name == "sd15" and not given.output.push_to_hub:
            run_python()
    assert trained == 6
    pushed = hub.folder / "someone" / "sd15-diamond-map"
    assert files_in(pushed) == {*MAP_REPOSITORY}
    assert "license: creativeml-openrail-m" in (pushed / "README.md").read_text()
    assert (place / "apples.png").exists() and list((place / "out" / "apples").glob("*.png"))
    assert any("Diamond" in file.read_text() for file in (place / "out" / "posteriors").glob("*.md"))
    pipe = DiamondMapPipeline.from_pretrained(pushed)
    assert torch.as_tensor(pipe("a ring", output_type="pt", num_inference_steps=2).images).isfinite().all()
