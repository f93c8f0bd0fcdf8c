"""Commands and the trainer, killed at any moment, leave the old output or the new, and can be run again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from diamond_diffusers import DiamondMapPipeline

from .judging import Tally

GENERATE = ("diamond_diffusers", "generate", "a ring", "--num-inference-steps", "2", "--alignment", "none", "--output")
BENCHMARK = (
    *("diamond_diffusers", "benchmark", "--methods", "plain,best_of_n", "--num-prompts", "3", "--budgets", "24"),
    *("--batch-size", "1", "--num-inference-steps", "4", "--output"),
)


def killed(arguments: Sequence[str], seconds: float) -> bool:
    """Starts a module and kills it after so long; whether it was still alive."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", *arguments], env=environment, **quiet) as process:
        time.sleep(seconds)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    return alive


def finish(arguments: Sequence[str]) -> float:
    """Runs a module to its end; returns how long it took."""
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    return time.monotonic() - start


def unreadable(folder: Path) -> list[str]:
    """The files in a folder that are half written; names that begin with a dot are nobody's to read."""
    broken = []
    for file in folder.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text())
            elif file.suffix in (".png", ".webp"):
                Image.open(file).load()
            elif file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    opened.keys()
        except Exception as error:
            broken.append(f"{file.relative_to(folder)}: {error}")
    return broken


@pytest.mark.robustness
@pytest.mark.parametrize("command", [GENERATE, BENCHMARK], ids=["generate", "benchmark"])
def test_a_killed_command_leaves_nothing_half_written(command: Sequence[str], tmp_path: Path, tally: Tally) -> None:
    source, whole = random.Random(0), tmp_path / "whole"
    seconds = finish((*command, str(whole)))
    images = {file.relative_to(whole): file.read_bytes() for file in whole.rglob("*.png")}
    output = tmp_path / "killed"
    for moment in [source.uniform(0.4, 1.05) * seconds for _ in range(5)]:
        killed((*command, str(output)), moment)
        broken = unreadable(output) if output.exists() else []
        tally.count("understood", str(broken) if broken else None, f"{command[1]} killed after {moment:.2f} s")
    finish((*command, str(output)))
    again = {file.relative_to(output): file.read_bytes() for file in output.rglob("*.png")}
    assert {name: again.get(name) for name in images if "images" in name.parts or "aligned" in name.name} == {
        name: content for name, content in images.items() if "images" in name.parts or "aligned" in name.name
    }
    assert not list(output.rglob(".*partial")) or output.exists()
    tally.check()


def header_and_weights(file: Path) -> tuple[Any, bytes]:
    """The parts of a file of safetensors, whose metadata are written in an order that differs from run to run."""
    size, rest = int.from_bytes(file.read_bytes()[:8], "little"), file.read_bytes()[8:]
    return json.loads(rest[:size]), rest[size:]


@pytest.mark.robustness
def test_a_killed_trainer_goes_on_bit_for_bit(tmp_path: Path, tally: Tally) -> None:
    source = random.Random(1)

    def command(output: Path) -> tuple[str, ...]:
        options = {
            **{"pretrained_model_name_or_path": "miniature", "dataset_name": "miniature", "max_train_samples": 4},
            **{"train_batch_size": 2, "max_train_steps": 8, "checkpointing_steps": 1, "rank": 2, "report_to": "none"},
            **{"lr_warmup_steps": 1, "resume_from_checkpoint": "latest", "output_dir": output},
        }
        return ("diamond_diffusers.training.distill", *(f"--{name}={value}" for name, value in options.items()))

    seconds = finish(command(tmp_path / "whole"))
    output = tmp_path / "killed"
    for moment in [source.uniform(0.5, 0.98) * seconds for _ in range(4)]:
        killed(command(output), moment)
        broken = unreadable(output) if output.exists() else []
        tally.count("understood", str(broken) if broken else None, f"trainer killed after {moment:.2f} s")
    finish(command(output))
    for file in (tmp_path / "whole").glob("*.safetensors"):
        assert header_and_weights(file) == header_and_weights(output / file.name), file.name
    tally.check()


def test_a_killed_save_leaves_the_old_model_and_the_next_save_cleans_up(
    tiny_folder: Path, tmp_path: Path, tally: Tally
) -> None:
    """Killed between its files; what it leaves is named `.unfinished-*`."""
    pipe, target = DiamondMapPipeline.from_pretrained(tiny_folder), tmp_path / "model"
    pipe.save_pretrained(target)
    before = {file: file.read_bytes() for file in sorted(target.rglob("*")) if file.is_file()}
    for number in range(3):
        child = os.fork()
        if child == 0:
            component = pipe.components[("vae", "transformer", "text_encoder")[number]]
            type(component).save_pretrained = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
            try:
                pipe.save_pretrained(target)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        same = {file: file.read_bytes() for file in before} == before
        tally.count("understood", None if same else "another model", f"save killed at component {number}")
        assert list(target.glob(".unfinished-*"))
    pipe.save_pretrained(target)
    assert not list(target.glob(".unfinished-*"))
    tally.check()
