"""What the trainer says where it cannot start."""

from __future__ import annotations

import errno
import json
import os
import tempfile

import datasets
import huggingface_hub
import pytest
import torch
from safetensors import SafetensorError

from diamond_diffusers.files import staging
from diamond_diffusers.training import checkpoints, distill, trainer
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.trainer import Trainer


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
        (("--mixed_precision", "fp16"), "--mixed_precision is fp16, which needs a scaler of gradients, .* cpu; take"),
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
    monkeypatch.setattr(trainer, "load_base", lambda *arguments: pytest.fail("loaded the base"))
    with pytest.raises(TrainingError, match=message):
        Trainer(options(*further))


def test_the_command_says_what_is_wrong_in_one_line(tiny_folder, tmp_path, monkeypatch, offline):
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    nested = tmp_path / "nested"
    nested.mkdir()
    (nested / "model_index.json").write_text("[" * 100_000)
    shared = ["--dataset_name", "miniature", "--report_to", "none", "--output_dir", str(tmp_path / "out")]
    for name, message in (
        (str(folder), "pipeline is a KandinskyPipeline, for which there is no family"),
        (str(nested), "model_index.json of .* is nested too deep"),
        ("no/such", "it is not in the cache, and the Hub cannot be reached"),
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
    monkeypatch.setattr(Trainer, "run", lambda self: {}["bug"])
    with pytest.raises(KeyError):
        distill.main(tiny)


def main_of(given):
    """Runs the command with options as the fixture `options` makes them."""
    arguments = [(f"--{name}", str(value)) for name, value in given.by_flag().items() if value is not None]
    switches = {f"--{name}" for name, value in given.by_flag().items() if isinstance(value, bool)}
    words = [
        word
        for name, value in arguments
        for word in ((name,) * (value == "True") if name in switches else (name, value))
    ]
    distill.main(words)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["file", "file/within", "logs"])
def test_an_output_that_cannot_be_written_is_refused_before_the_base_is_loaded(options, tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("")
    monkeypatch.setattr(trainer, "load_base", lambda *arguments: pytest.fail("loaded the base"))
    given = options("--report_to", "tensorboard", output="out" if name == "logs" else name)
    option = "--logging_dir" if name == "logs" else "--output_dir"
    with pytest.raises(SystemExit, match=rf"^error: {option} is '.*{name}', where nothing can be written .*; name"):
        main_of(given)


def test_an_output_on_a_disk_that_is_only_read_is_refused(options, monkeypatch):
    def refuse(**arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(SystemExit, match=r"^error: --output_dir is '.*', where .* written \(Read-only file system\)"):
        main_of(options())


@pytest.mark.parametrize(
    ("module", "writer", "error", "further", "message"),
    [
        (
            checkpoints.torch,
            "save",
            FULL,
            ("--checkpointing_steps", 1),
            "out/checkpoint-1' cannot be written .No space",
        ),
        (
            checkpoints.torch,
            "save",
            # What torch.save raises then.
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            ("--checkpointing_steps", 1),
            "out/checkpoint-1' cannot be written .the disk may be full",
        ),
        (
            staging,
            "save_file",
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            ("--cache_latents",),
            "00000000.safetensors' cannot be written .*No space left on device",
        ),
        (trainer.Accelerator, "log", FULL, (), "out/logs' cannot be written .No space left on device"),
        (trainer.Accelerator, "end_training", FULL, (), "out/logs' cannot be written .No space left on device"),
        (trainer, "save_diamond_map", FULL, (), "out' cannot be written .No space left on device"),
        (trainer, "write_model_card", FULL, (), "out' cannot be written .No space left on device"),
    ],
    ids=["checkpoint", "checkpoint of torch", "cache", "logs", "end of the logs", "map", "card"],
)
def test_a_full_disk_is_told(options, monkeypatch, module, writer, error, further, message):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(module, writer, fail)
    given = options(*further, "--max_train_steps", 1, "--num_validation_images", 1)
    with pytest.raises(SystemExit, match=rf"^error: '.*{message}.*; make room on the disk") as stopped:
        main_of(given)
    assert "\n" not in str(stopped.value)
    assert not list(given.output.output_dir.glob("checkpoint-?"))


def test_a_want_of_memory_is_told(options, monkeypatch):
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried."),
        RuntimeError("DefaultCPUAllocator: no"),
        MemoryError(),
    ):
        monkeypatch.setattr(Trainer, "__init__", lambda self, given, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(SystemExit, match=r"^error: .*memory.*; lower --train_batch_size"):
            main_of(options())
    monkeypatch.setattr(Trainer, "__init__", lambda self, given: (_ for _ in ()).throw(RuntimeError("bug")))
    with pytest.raises(RuntimeError, match="bug"):
        main_of(options())


def test_a_precision_that_the_device_has_not_is_refused(options, monkeypatch):
    """In the words of accelerate, which knows the devices."""
    monkeypatch.setattr("accelerate.accelerator.Accelerator.device", torch.device("vulkan"))
    with pytest.raises(
        TrainingError, match=r"^--mixed_precision fp16 cannot be used here \(fp16 .* requires .*; take an"
    ):
        Trainer(options("--mixed_precision", "fp16"))


def test_a_seed_of_32_bits_trains(options):
    Trainer(options("--seed", 2**32 - 1, "--max_train_steps", 1, "--num_validation_images", 1)).run()
