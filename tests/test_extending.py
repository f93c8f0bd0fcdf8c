"""The files of docs/extending.md, each used by its name in every way that the page tells, with no file edited."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.zoo.flux import build_tiny_flux
from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.methods import METHODS
from diamond_diffusers.alignment.named import as_method
from diamond_diffusers.core.registry import REGISTRIES
from diamond_diffusers.maps.storage import read_map_config
from diamond_diffusers.posteriors import POSTERIORS
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.trainer import Trainer
from diamond_diffusers.transitions import TRANSITIONS

from .cli.invoking import refusal, succeed
from .conftest import DEFAULTS
from .plug_ins import install

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {name: text for text, name in re.findall(r"```python\n(# (my_\w+)\.py\n.*?)```", PAGE, re.DOTALL)}
OWN = {*FILES, *(f"imported_{name}" for name in FILES)}
"""Names under which the files are imported, the second by the trainer."""
ENTRY_POINTS = re.search(r"\[options.entry_points\]\n(.*?)```", PAGE, re.DOTALL)[1]
METHOD_FORMS = {
    "my_method": {"name": "nudge", "strength": 2.0, "num_particles": 2},
    "my_preset": {"name": "strong_guidance", "guide": {"max_shift": 0.5}},
    "my_posterior": {"name": "smc", "posterior": {"name": "gaussian", "width": 0.5}, "num_particles": 2},
    "my_transition": {"name": "smc", "transition": {"name": "churned", "churn": 0.2}, "num_particles": 2},
}
"""What each file makes possible, in the serial form that Python and a saved model take."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files; what they register is forgotten after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path
    for registry in REGISTRIES:
        for name in [name for name, entry in registry._entries.items() if getattr(entry, "__module__", None) in OWN]:
            del registry._entries[name]
    for name in OWN:
        sys.modules.pop(name, None)


@pytest.fixture
def imported(folder):
    """Options of a command that import files."""
    return lambda *names: [text for name in names for text in ("--import", str(folder / f"{name}.py"))]


def options_of(form, place=""):
    """What a serial form holds beside the method's name, as `-o` takes it."""
    for name, value in form.items():
        if isinstance(value, dict):
            yield from options_of(value, f"{place}{name}.")
        elif place + name != "name":
            yield from ("-o", f"{place}{name}={value}")


def test_the_page_shows_one_of_each():
    assert len(FILES) == 8 and len(re.findall(r" = my_", ENTRY_POINTS)) == 7


@pytest.mark.parametrize("file", METHOD_FORMS)
def test_a_method_and_its_parts_are_used_by_name(folder, imported, tiny_folder, redness_reward, file):
    form = METHOD_FORMS[file]
    with pytest.raises(ValueError, match="choose one of"):
        as_method(form)
    out = folder / "out"
    command = ("generate", "a star", "--model", tiny_folder, "--reward", redness_reward, "--num-inference-steps", 2)
    succeed(*imported(file), *command, "--alignment", form["name"], *options_of(form), "--output", out)
    # The command has imported the file, so that the names are known here too.
    method = as_method(form)
    ran = json.loads((out / "record.json").read_text())["settings"]["alignment"]
    assert METHODS.get(ran["name"]) is type(method) and ran["num_particles"] == method.num_particles
    for name, value in form.items():
        if isinstance(value, dict):
            assert ran[name] | value == ran[name]
        elif name != "name":
            assert ran[name] == value

    pipe = DiamondMapPipeline.from_pretrained(tiny_folder, defaults={"alignment": form, "reward": redness_reward})
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "pt"}
    drawn = pipe("a star", alignment=form, generator=torch.Generator().manual_seed(0), **call)
    assert as_method(drawn.alignment).num_particles == method.num_particles
    pipe.save_pretrained(folder / "saved")
    again = DiamondMapPipeline.from_pretrained(folder / "saved")
    again.set_progress_bar_config(disable=True)
    assert (again("a star", generator=torch.Generator().manual_seed(0), **call).images == drawn.images).all()


def test_names_are_compared_and_redrawn(folder, imported, tiny_folder):
    files = imported("my_method", "my_preset", "my_posterior", "my_transition", "my_cell", "my_reward")
    names = ["nudge", "strong_guidance", "churned_smc", "gaussian_resampling", "wide_churned_smc"]
    out = folder / "out"
    model = ("--model", tiny_folder, "--reward", "warmth", "--num-inference-steps", 2)
    command = ("benchmark", *model, "--methods", ",".join(["plain", *names]), "--num-prompts", 1, "--budgets", 24)
    succeed(*files, *command, "--output", out)
    assert {path.name.rpartition("_")[0] for path in (out / "images").iterdir()} == {"plain", *names}
    for name in names:
        (record,) = (out / "images").glob(f"{name}_*/*.json")
        told = succeed(*files, "redraw", record, "--output", folder / "again.png", "--device", "cpu")
        assert "bit for bit" in told
    POSTERIORS._entries.pop("gaussian")
    assert "is 'gaussian'; choose one of" in refusal("redraw", record, "--output", folder / "again.png")


def test_a_reward_is_used_by_name(folder, imported, tiny_folder):
    images = folder / "images"
    command = ("generate", "a star", "--model", tiny_folder, "--num-inference-steps", 2, "--output", images)
    succeed(*imported("my_reward"), *command, "--alignment", "best_of_n", "--reward", "2*warmth + brightness")
    scored = ("score", *images.glob("aligned_*.png"), "--prompt", "a star", "--reward", "warmth", "--format", "csv")
    assert "warmth" in succeed(*imported("my_reward"), *scored)
    pipe = DiamondMapPipeline.from_pretrained(tiny_folder, defaults={"reward": "warmth"})
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / "saved")
    assert DiamondMapPipeline.from_pretrained(folder / "saved").defaults["reward"] == "warmth"
    out = pipe("a star", alignment="best_of_n", num_inference_steps=2, output_type="pt")
    assert out.rewards == pytest.approx((out.images[:, 0] - out.images[:, 2]).mean((1, 2)), abs=1e-5)


def test_a_family_is_used_by_name(folder, imported):
    out = folder / "out"
    stock = build_tiny_flux()
    succeed(*imported("my_family"), "models")
    pipe = DiamondMapPipeline(sys.modules["my_family"].GreyPipeline(**stock.components), DEFAULTS)
    pipe.save_pretrained(folder / "saved")
    model = ("--model", folder / "saved", "--reward", "brightness")
    succeed(*imported("my_family"), "generate", "a star", *model, "--alignment", "best_of_n", "--output", out)
    pixels = np.asarray(Image.open(next(out.glob("aligned_*.png"))))
    assert (pixels == pixels[..., :1]).all()
    command = ("benchmark", *model, "--methods", "best_of_n", "--num-prompts", 1, "--budgets", 24)
    succeed(*imported("my_family"), *command, "--output", out)
    (record,) = (out / "images").glob("*/*.json")
    again = ("redraw", record, "--output", folder / "again.png", "--device", "cpu")
    assert "bit for bit" in succeed(*imported("my_family"), *again)
    assert type(DiamondMapPipeline.from_pretrained(folder / "saved").family).__name__ == "GreyFamily"


def test_a_loss_is_used_by_name(folder, imported, tiny_folder):
    given = {"pretrained_model_name_or_path": tiny_folder, "dataset_name": "miniature", "loss": "velocity_only"}
    given |= {"max_train_samples": 2, "max_train_steps": 1, "train_batch_size": 2, "rank": 2, "report_to": "none"}
    given |= {"num_validation_images": 1, "lr_warmup_steps": 1, "output_dir": folder / "map"}
    texts = [str(text) for name, value in given.items() for text in (f"--{name}", value)]
    Trainer(parse_options([*imported("my_loss"), *texts])).run()
    assert read_map_config(folder / "map")["training"]["loss"] == "velocity_only"


def test_each_is_offered_by_an_entry_point(folder, monkeypatch):
    groups = re.sub(r"^(\S+) =$", r"[\1]", ENTRY_POINTS, flags=re.MULTILINE)
    install(monkeypatch, folder, "mine", groups)
    offered = re.findall(r"(\w+) = (my_\w+):(\w+)", ENTRY_POINTS)
    for registry in REGISTRIES:
        registry.__dict__.pop("_entry_points", None)
    try:
        for name, module, attribute in offered:
            own = (each for each in REGISTRIES if (each.folder or "").startswith("diamond_diffusers."))
            (registry,) = (each for each in own if name in each)
            assert f"[{registry.group}]" in groups and name in registry.names()
            assert registry.get(name) is getattr(sys.modules[module], attribute)
        assert as_method({"name": "smc", "transition": "churned"}).transition == TRANSITIONS.get("churned")()
    finally:
        for registry in REGISTRIES:
            registry.__dict__.pop("_entry_points", None)
