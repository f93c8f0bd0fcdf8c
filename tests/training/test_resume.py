"""Runs that are resumed from a checkpoint, or refuse one."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from accelerate import Accelerator

from diamond_diffusers.files.foreign import ForeignFileError
from diamond_diffusers.training import checkpoints
from diamond_diffusers.training.checkpoints import Checkpoints, decisive_options
from diamond_diffusers.training.data import cache as data_cache
from diamond_diffusers.training.errors import TrainingError
from diamond_diffusers.training.options.records import Options
from diamond_diffusers.training.trainer import Trainer

from .processes import in_child
from .runs import assert_same, weights_of

NONE_SKIPPED = {"total": 0, "in_a_row": 0}
STATE = {
    **{"step": 1, "options": {}, "weights": {}, "average": None, "schedule": {}, "scaler": None},
    "skipped": NONE_SKIPPED,
}
"""In the form of a checkpoint's."""


def _killed_in_the_middle(given: Options, moment: str) -> None:
    """What the child does: a run that dies by SIGKILL."""
    run = Trainer(given)
    if moment == "update":
        update = run._update
        run._update = lambda source: os.kill(os.getpid(), signal.SIGKILL) if run.step == 3 else update(source)
    else:
        save = torch.save

        def save_half(state, file):
            if state["step"] == 4:
                file.write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file)

        checkpoints.torch.save = save_half
    run.run()


@pytest.mark.parametrize(
    ("moments", "special"),
    [
        (("update", "checkpoint"), ["--random_flip", "--loss", "central_difference"]),
        pytest.param(("update",), ["--loss", "trajectories", "--cache_trajectories"], marks=pytest.mark.slow),
        pytest.param(
            ("update",),
            ["--teacher_samples", "--teacher_num_inference_steps", 1, "--loss", "progressive"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_and_resumed_it_ends_at_the_same_weights(options, moments, special):
    further = ["--max_train_steps", 5, "--checkpointing_steps", 2, "--gradient_accumulation_steps", 2]
    further += [*special, "--lr_scheduler", "cosine", "--max_train_samples", 7, "--num_validation_images", 1]
    unbroken = Trainer(options(*further, output="unbroken"))
    unbroken.run()
    for moment in moments:
        given = options(*further, "--resume_from_checkpoint", "latest", output=f"killed in {moment}")
        status = in_child(lambda given=given, moment=moment: _killed_in_the_middle(given, moment))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        folder = given.output.output_dir
        assert not (folder / "diamond_map_config.json").exists()
        assert (folder / "checkpoint-4.partial").exists() == (moment == "checkpoint")

        resumed = Trainer(given)
        assert resumed.step == 2
        assert not list(folder.glob("*.partial"))
        resumed.run()
        assert_same(weights_of(unbroken), weights_of(resumed))
        assert_same(unbroken.average.shadow_params, resumed.average.shadow_params)


def _killed_between_shards(given: Options) -> None:
    """What the child does: it dies while it writes its second shard."""
    write = data_cache.write_safetensors

    def write_half(file, tensors):
        if file.name == "00000002.safetensors":
            file.with_name(f".{file.name}.partial").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, tensors)

    data_cache.write_safetensors = write_half
    Trainer(given).run()


def test_killed_while_it_caches_it_goes_on_at_the_shard(options, monkeypatch):
    monkeypatch.setattr(data_cache, "MAX_ROWS_OF_SHARD", 2)
    shared = ["--loss", "trajectories", "--cache_trajectories", "--max_train_steps", 2, "--num_validation_images", 1]
    unbroken = Trainer(options(*shared, output="unbroken"))
    unbroken.run()
    given = options(*shared, output="killed")
    status = in_child(lambda: _killed_between_shards(given))
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    (cache,) = (given.output.output_dir / "cache").iterdir()
    assert [file.name for file in sorted(cache.iterdir())] == [
        ".00000002.safetensors.partial",
        "00000000.safetensors",
    ]
    written = (cache / "00000000.safetensors").stat().st_mtime_ns
    resumed = Trainer(given)
    resumed.run()
    assert (cache / "00000000.safetensors").stat().st_mtime_ns == written
    assert_same(weights_of(unbroken), weights_of(resumed))


@pytest.mark.parametrize(
    ("further", "difference"),
    [
        (("--rank", 3), "--rank 2, and this one has 3"),
        (("--ema_decay", 0), "--ema_decay 0.9999, and this one has 0.0"),
        (("--lora_layers", "to_v"), "--lora_layers None, and this one has to_v"),
        (("--loss", "progressive"), "--loss lagrangian, and this one has progressive"),
        (("--train_batch_size", 1), "--train_batch_size 2, and this one has 1"),
        (("--adam_beta1", 0.8), "--adam_beta1 0.9, and this one has 0.8"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, monkeypatch, further, difference):
    monkeypatch.setattr(Trainer, "_build_map", lambda self: pytest.fail("loaded the base"))
    before = decisive_options(options(), Accelerator())
    Checkpoints(options().output.output_dir).save(1, {**STATE, "options": before})
    with pytest.raises(TrainingError, match=rf"checkpoint-1 is of a run with {difference}; resume with its options"):
        Trainer(options("--resume_from_checkpoint", "latest", *further))


NEW = {"quantize", "initial_map", "num_trajectories", "pure_noise_share"}
"""Options that the first checkpoints did not know."""


def test_a_checkpoint_that_is_older_than_an_option_is_of_a_run_with_its_default(options, monkeypatch):
    class Continues(Exception):
        """The base would be loaded now."""

    def load(run):
        raise Continues

    monkeypatch.setattr(Trainer, "_build_map", load)
    before = decisive_options(options(), Accelerator())
    assert before.keys() >= NEW
    before = {name: value for name, value in before.items() if name not in NEW}
    Checkpoints(options().output.output_dir).save(1, {**STATE, "options": before})
    with pytest.raises(Continues):
        Trainer(options("--resume_from_checkpoint", "latest"))
    with pytest.raises(
        TrainingError, match=r"of a run with --pure_noise_share 0\.1, and this one has 0\.3; resume with"
    ):
        Trainer(options("--resume_from_checkpoint", "latest", "--pure_noise_share", 0.3))


def test_rows_that_were_not_held_out_then_cannot_be_now(prompts_file, options, monkeypatch):
    monkeypatch.setattr(Trainer, "_build_map", lambda self: pytest.fail("loaded the base"))
    shared = ["--prompts_file", prompts_file, "--loss", "progressive"]
    metrics = ["--validation_metrics", "--num_validation_observations", 2]
    folder = options(*shared).output.output_dir
    for taken, further, message in (
        (0, metrics, "out none of its rows, and this one holds out 2"),
        (2, [], "out 2 of its rows, and this one holds out none"),
    ):
        before = decisive_options(options(*shared, *metrics), Accelerator(), taken)
        Checkpoints(folder).save(1, {**STATE, "options": before})
        with pytest.raises(TrainingError, match=f"held {message}; resume with the same --validation_metrics and --num"):
            Trainer(options(*shared, *further, "--resume_from_checkpoint", "latest"))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "the state in '.*checkpoint-1' has no 'options'; resume from another checkpoint"),
        ({**STATE, "options": [1]}, "options of the state in '.*' is a list in place of an object"),
        ({**STATE, "weights": {"a\nb": 1}}, r"weights\.a\\nb of the state in '.*' is 1 in place of Tensor"),
        ({**STATE, "step": -1}, "holds no state of a run"),
        ({**STATE, "average": 3}, "average of the state in '.*' is 3 in place of an object or null"),
        ({**STATE, "average": {}}, "average of the state in '.*' has no 'shadow_params'"),
        ({**STATE, "skipped": {"total": 0}}, "skipped of the state in '.*' has no 'in_a_row'"),
    ],
)
def test_a_checkpoint_without_a_state_is_refused_before_the_base_is_loaded(options, monkeypatch, state, message):
    monkeypatch.setattr(Trainer, "_build_map", lambda self: pytest.fail("loaded the base"))
    Checkpoints(options().output.output_dir).save(1, {})
    torch.save({"step": 1, **state}, options().output.output_dir / "checkpoint-1" / "state-0.pt")
    with pytest.raises((TrainingError, ForeignFileError), match=message):
        Trainer(options("--resume_from_checkpoint", "latest"))


@pytest.mark.parametrize("part", ["weights", "schedule", "optimizer"])
def test_a_checkpoint_with_a_part_of_another_model_is_refused(options, part):
    first = Trainer(options())
    first._save_checkpoint()
    file = first.options.output.output_dir / "checkpoint-0" / "state-0.pt"
    state = torch.load(file, weights_only=True)
    state[part] = {"odd": torch.zeros(2)}
    torch.save(state, file)
    with pytest.raises(TrainingError, match=r"checkpoint-0 is of another run \(.*\); resume from another checkpoint"):
        Trainer(options("--resume_from_checkpoint", "latest"))


def test_a_folder_with_checkpoints_is_not_started_in_again(options):
    Checkpoints(options().output.output_dir).save(1, {})
    with pytest.raises(TrainingError, match=r"is no checkpoint; there are checkpoint-1"):
        Trainer(options("--resume_from_checkpoint", "checkpoint-7"))
    with pytest.raises(TrainingError, match=r"holds checkpoint-1 already, and this run starts at step 0"):
        Trainer(options())


def test_a_resumed_run_takes_its_own_learning_rate(options):
    shared = ["--checkpointing_steps", 2, "--lr_scheduler", "linear", "--lr_warmup_steps", 0, "--max_train_steps", 4]
    first = Trainer(options(*shared, "--learning_rate", 0.01))
    first.step = 2
    for _ in range(2):
        first.optimizer.step()
        first.schedule.step()
    first._save_checkpoint()
    for rate in (0.01, 0.002):
        resumed = Trainer(options(*shared, "--learning_rate", rate, "--resume_from_checkpoint", "latest"))
        rates = []
        for _ in range(2):
            rates.append(resumed.optimizer.param_groups[0]["lr"])
            resumed.schedule.step()
        assert rates == pytest.approx([rate / 2, rate / 4])
