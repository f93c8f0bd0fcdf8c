"""A loss in a file of the user's own, which the trainer takes by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from diamond_diffusers.maps.storage import read_map_config
from diamond_diffusers.training.losses import LOSSES, register_loss
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.trainer import Trainer

SOURCE = '''
"""Learns the velocity of the teacher's inner flow wherever it is asked for a step."""

from dataclasses import dataclass

from diamond_diffusers.training.losses import register_loss
from diamond_diffusers.training.losses.residuals import squared, student_denoised, teacher_denoised
from diamond_diffusers.training.losses.steps import StepLoss


@register_loss("mine")
@dataclass(frozen=True)
class Mine(StepLoss):
    needs_forward_mode = {needs_forward_mode}
    factor: float = 2.0

    def squared_residuals(self, diamond_map, batch):
        taught = teacher_denoised(diamond_map, batch, batch.xbar, batch.s)
        return self.factor * squared(student_denoised(diamond_map, batch, batch.xbar, batch.s, batch.s) - taught)
'''


@pytest.fixture
def write_loss(tmp_path, monkeypatch):
    """Writes a package with the loss, which is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_losses").mkdir()
    (tmp_path / "my_losses" / "__init__.py").touch()

    def write(needs_forward_mode: bool = False):
        file = tmp_path / "my_losses" / "mine.py"
        file.write_text(SOURCE.format(needs_forward_mode=needs_forward_mode))
        return file

    yield write
    LOSSES._entries.pop("mine", None)
    for name in ("my_losses", "my_losses.mine", "mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("form", ["file", "module"])
def test_it_is_trained_with_by_name(options, write_loss, form):
    file = write_loss()
    given = options(
        "--import", file if form == "file" else "my_losses.mine", "--loss", "mine", "--diagonal_fraction", 0.5
    )
    run = Trainer(given)
    assert type(run.loss).__name__ == "Mine" and (run.loss.diagonal_fraction, run.loss.factor) == (0.5, 2.0)
    before = [weight.detach().clone() for weight in run.parameters]
    run.run()
    assert run.step == 3 and all((old != new).any() for old, new in zip(before, run.parameters, strict=True))
    assert read_map_config(given.output.output_dir)["training"]["loss"] == "mine"


def test_the_documented_one_is_trained_with(options, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = (block for block in page.split("```python\n") if block.startswith("# my_loss.py"))
    file = tmp_path / "my_loss.py"
    file.write_text(block.partition("```")[0])
    try:
        run = Trainer(options("--import", file, "--loss", "two_steps_of_euler", "--max_train_steps", 2))
        run.run()
        assert run.step == 2 and type(run.loss).__module__ == "my_loss"
    finally:
        LOSSES._entries.pop("two_steps_of_euler", None)
        sys.modules.pop("my_loss", None)


def test_a_file_of_options_names_it_too(tmp_path, write_loss, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"pretrained_model_name_or_path: miniature\ndataset_name: miniature\nimport: {write_loss()}\nloss: mine\n"
    )
    assert parse_options(["--config", str(file)]).loss.name == "mine"
    with pytest.raises(SystemExit):
        parse_options(["--config", str(file), "--help"])
    assert "eulerian,lagrangian,mine,progressive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("--gradient_checkpointing",), "no forward-mode rule, which --loss mine needs"),
        (("--regression_weight", "3"), "--regression_weight is for --loss trajectories, and has no effect"),
        (("--import", "nothing.py"), "--import is 'nothing.py', which is no file; name a .py file"),
        (
            ("--import", "no_such_module"),
            "--import is 'no_such_module', which is no module that Python finds",
        ),
    ],
)
def test_what_it_cannot_be_used_with_is_refused(write_loss, capsys, further, message):
    write_loss(needs_forward_mode=True)
    base = ("--pretrained_model_name_or_path", "miniature", "--dataset_name", "miniature")
    with pytest.raises(SystemExit):
        parse_options([*base, "--import", "my_losses.mine", "--loss", "mine", *further])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_what_is_no_loss_is_not_registered():
    with pytest.raises(TypeError, match="register a subclass of DistillationLoss"):
        register_loss("mine")(lambda diamond_map, batch: batch.s)
    assert "mine" not in LOSSES
