"""The trainer as a command of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command, launch_command_parser

from diamond_diffusers.maps.storage import read_map_config

ROOT = Path(__file__).parents[2]
MACHINE = "--cpu --num_processes 1 --num_machines 1 --dynamo_backend no --mixed_precision no"
TRAINER = "diamond_diffusers.training.distill"


@pytest.fixture
def launched(tiny_folder, tmp_path):
    """What follows `accelerate launch`: a short run, whose limit of checkpoints is that of the command line."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"pretrained_model_name_or_path: {tiny_folder}\ndataset_name: miniature\nmax_train_samples: 2\n"
        "max_train_steps: 2\ntrain_batch_size: 1\nrank: 2\nloss: progressive\nnum_validation_images: 1\n"
        "report_to: none\nmixed_precision: bf16\ncheckpointing_steps: 1\n"
    )
    own = ["--config", str(config), "--checkpoints_total_limit", "1", "--output_dir", str(tmp_path / "out")]
    return [*MACHINE.split(), "--num_cpu_threads_per_process", "1", "-m", TRAINER, *own]


def check(output: Path) -> None:
    assert read_map_config(output)["training"]["mixed_precision"] == "bf16"
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]


def test_it_is_launched_by_accelerate(launched, tmp_path, monkeypatch):
    """By its command in this process, which has imported it; the trainer that it starts in another has to succeed."""
    monkeypatch.chdir(ROOT)
    launch_command(launch_command_parser().parse_args(launched))
    check(tmp_path / "out")


def test_help_and_mistakes_are_told_before_anything_heavy_is_imported():
    """That would take seconds."""
    program = (
        "import runpy, sys\n"
        "def asked(*arguments):\n"
        "    sys.argv = ['distill', *arguments]\n"
        "    try:\n"
        f"        runpy.run_module('{TRAINER}', run_name='__main__')\n"
        "    except SystemExit as stopped:\n"
        "        return stopped.code\n"
        "assert asked('--help') == 0\n"
        "assert asked('--pretrained_model_name_or_path', 'miniature') == 2\n"
        "print('heavy:', *sorted({'torch', 'transformers', 'diffusers', 'accelerate', 'peft'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--learning_rate" in done.stdout and done.stdout.splitlines()[-1] == "heavy:"
    assert "error: no data" in done.stderr
