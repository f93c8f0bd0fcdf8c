from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from diamond_diffusers.training import grid
from diamond_diffusers.training.options.parser import parse_options
from diamond_diffusers.training.options.records import Options


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its state for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture(autouse=True)
def cheap_grid(monkeypatch):
    """Every finished run draws one, and most tests do not look at it."""
    monkeypatch.setattr(grid, "REFERENCE_STEPS", 2)


@pytest.fixture
def prompts_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\ntwo blue stars\na ring\n")
    return file


@pytest.fixture
def options(tiny_folder, tmp_path):
    """Options of a short run on the tiny model and scenes of the miniature's world; later ones count.

    Other data take the place of those scenes.
    """

    def make(*further: object, output: Path | str = "out") -> Options:
        run = {
            "pretrained_model_name_or_path": tiny_folder,
            "dataset_name": "miniature",
            "max_train_samples": 5,
            "max_train_steps": 3,
            "train_batch_size": 2,
            "rank": 2,
            "lr_warmup_steps": 1,
            "num_validation_images": 2,
            "report_to": "none",
            "output_dir": tmp_path / output,
        }
        if {"--train_data_dir", "--prompts_file"} & set(further):
            del run["dataset_name"]
        if "--prompts_file" in further:
            del run["max_train_samples"]
        arguments = [text for name, value in run.items() for text in (f"--{name}", str(value))]
        return parse_options([*arguments, *map(str, further)])

    return make
