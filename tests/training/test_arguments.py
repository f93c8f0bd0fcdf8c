"""The options of the trainer."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from diffusers.optimization import SchedulerType

from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.options.fields import options_of
from diamond_diffusers.training.options.parser import build_parser, parse_options
from diamond_diffusers.training.options.records import LossOptions, ScheduleOptions

BASE = ("--pretrained_model_name_or_path", "miniature")
DATA = ("--dataset_name", "miniature")

EXPECTED = frozenset(
    """
    pretrained_model_name_or_path revision variant dataset_name image_column caption_column resolution center_crop
    random_flip train_batch_size gradient_accumulation_steps max_train_steps learning_rate lr_scheduler lr_warmup_steps
    optimizer use_8bit_adam max_grad_norm rank lora_alpha lora_layers mixed_precision allow_tf32 gradient_checkpointing
    cache_latents checkpointing_steps checkpoints_total_limit resume_from_checkpoint validation_prompt
    num_validation_images validation_steps report_to tracker_project_name seed push_to_hub hub_model_id guidance_scale
    ema_decay output_dir
    """.split()  # noqa: SIM905
)
"""As in diffusers' training scripts."""


def test_the_options_have_the_names_that_users_know():
    assert {action.dest for action in build_parser()._actions} >= EXPECTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (DATA, "--pretrained_model_name_or_path is missing"),
        (BASE, "no data: give --dataset_name, --train_data_dir, or --prompts_file"),
        ((*BASE, *DATA, "--train_data_dir", "x"), "both --dataset_name and --train_data_dir"),
        ((*BASE, *DATA, "--prompts_file", "x"), "--prompts_file is for samples of the teacher"),
        ((*BASE, *DATA, "--gradient_checkpointing"), "no forward-mode rule"),
        ((*BASE, *DATA, "--streaming"), "--streaming needs a --dataset_name"),
        ((*BASE, "--dataset_name", "x", "--streaming", "--cache_latents"), "drop --streaming"),
        ((*BASE, *DATA, "--cache_latents", "--random_flip"), "drop --random_flip"),
        ((*BASE, *DATA, "--quantize", "int3"), "invalid choice: 'int3'"),
        ((*BASE, *DATA, "--quantize", "fp8"), "--quantize fp8 has no forward-mode rule, which --loss lagrangian needs"),
        (
            (*BASE, "--dataset_name", "x", "--streaming", "--dataloader_num_workers", "2"),
            "cannot be used with --streaming",
        ),
        ((*BASE, *DATA, "--use_8bit_adam", "--optimizer", "prodigy"), "is for --optimizer adamw"),
        ((*BASE, *DATA, "--lr_scheduler", "constant", "--lr_warmup_steps", "5"), "has no warm-up"),
        ((*BASE, *DATA, "--hub_model_id", "x/y"), "without --push_to_hub"),
        ((*BASE, *DATA, "--report_to", "tensorboard,none"), "--report_to is 'tensorboard,none'"),
        ((*BASE, *DATA, "--report_to", "mlflow"), "--report_to is 'mlflow'"),
        ((*BASE, *DATA, "--train_batch_size", "0"), "--train_batch_size is 0; give at least 1"),
        ((*BASE, *DATA, "--ema_decay", "1.5"), "--ema_decay is 1.5; give a number between 0 and 1"),
        ((*BASE, *DATA, "--guidance_scale", "0"), "--guidance_scale is 0.0; give a number above 0"),
        ((*BASE, *DATA, "--learning_rate", "nan"), "--learning_rate is nan; give a finite number"),
        ((*BASE, *DATA, "--learning_rate", "1e400"), "--learning_rate is inf; give a finite number"),
        ((*BASE, *DATA, "--learning_rate", "-1"), "--learning_rate is -1.0; give at least 0"),
        ((*BASE, *DATA, "--learning_rate", "fast"), "invalid float value: 'fast'"),
        ((*BASE, *DATA, "--adam_beta1", "1"), "--adam_beta1 is 1.0; give a number of at least 0 and below 1"),
        ((*BASE, *DATA, "--adam_beta2", "-.1"), "--adam_beta2 is -0.1; give a number of at least 0 and below 1"),
        ((*BASE, *DATA, "--adam_beta2", "nan"), "--adam_beta2 is nan; give a finite number"),
        (
            (*BASE, *DATA, "--validation_prompt", "caf\udce9"),
            r"--validation_prompt is 'caf\udce9', which is not in UTF-8",
        ),
        (
            (*BASE, *DATA, "--adam_epsilon", "0"),
            "--adam_epsilon is 0.0; give a number above 0, since a map's gradients",
        ),
        ((*BASE, *DATA, "--adam_epsilon", "-.5"), "--adam_epsilon is -0.5; give a number above 0"),
        ((*BASE, *DATA, "--adam_weight_decay", "-1"), "--adam_weight_decay is -1.0; give at least 0"),
        ((*BASE, *DATA, "--lora_alpha", "0"), "--lora_alpha is 0.0; give a number above 0"),
        (
            (*BASE, *DATA, "--lr_scheduler", "polynomial", "--lr_power", "-1"),
            "--lr_power is -1.0; give at least 0",
        ),
        ((*BASE, *DATA, "--lr_scheduler", "polynomial", "--max_train_steps", "100"), "--lr_warmup_steps is 100, after"),
        ((*BASE, *DATA, "--lr_scheduler", "polynomial", "--learning_rate", "1e-8"), "polynomial falls to 1e-07; give"),
        ((*BASE, *DATA, "--seed", "-1"), "--seed is -1; give at least 0"),
        ((*BASE, *DATA, "--seed", str(10**30)), "--seed is 1e+30; give at most 4294967295"),
        ((*BASE, *DATA, "--resolution", "1000000000"), "--resolution is 1e+09; give at most 16384"),
        ((*BASE, *DATA, "--max_train_steps", str(10**12)), "--max_train_steps is 1e+12; give at most 2147483647"),
        ((*BASE, *DATA, "--lr_scheduler", "sawtooth"), "invalid choice: 'sawtooth'"),
        ((*BASE, *DATA, "--regression_weight", "3"), "--regression_weight is for --loss trajectories"),
        ((*BASE, *DATA, "--num_trajectories", "3"), "--num_trajectories is for --loss trajectories, and has no effect"),
        ((*BASE, *DATA, "--initial_map", "x", "--rank", "8"), "--rank is 8, but --initial_map brings its own; drop it"),
        ((*BASE, *DATA, "--pure_noise_share", "2"), "--pure_noise_share is 2.0; give a number between 0 and 1"),
        ((*BASE, *DATA, "--lr_num_cycles", "3"), "--lr_num_cycles is for --lr_scheduler cosine_with_restarts"),
        ((*BASE, *DATA, "--lr_power", "2"), "--lr_power is for --lr_scheduler polynomial"),
        ((*BASE, "--prompts_file", "x", "--random_flip"), "--random_flip is for images"),
        (
            (*BASE, "--prompts_file", "x", "--max_train_samples", "3"),
            "--max_train_samples is for a dataset or a folder",
        ),
        ((*BASE, "--train_data_dir", "x", "--dataset_split", "test"), "--dataset_split is for a --dataset_name"),
        ((*BASE, *DATA, "--cache_dtype", "bfloat16"), "--cache_dtype is for --cache_latents or --cache_trajectories"),
        ((*BASE, *DATA, "--cache_latents", "--cache_location", "gpu"), "invalid choice: 'gpu'"),
        ((*BASE, *DATA, "--teacher_batch_size", "8"), "--teacher_batch_size is for --cache_latents or --cache_traj"),
        ((*BASE, *DATA, "--cache_latents", "--teacher_batch_size", "0"), "--teacher_batch_size is 0; give at"),
        ((*BASE, *DATA, "--logging_steps", "0"), "--logging_steps is 0; give at least 1"),
        ((*BASE, *DATA, "--loss", "mse"), "invalid choice: 'mse'"),
        ((*BASE, *DATA, "--no_such_option", "1"), "unrecognized arguments: --no_such_option"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_options(arguments)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_file_sets_options_and_the_command_line_goes_before_it(tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_text(
        "pretrained_model_name_or_path: miniature\ndataset_name: miniature\nlearning_rate: 1e-3\nrank: 7\n"
        "center_crop: true\noutput_dir: maps/one\nloss: progressive\noptimizer: AdamW\nlora_alpha: null\n"
    )
    given = parse_options(["--config", str(file), "--rank", "5"])
    values = given.by_flag()
    assert {name: values[name] for name in ("rank", "learning_rate", "center_crop", "loss")} == {
        "rank": 5,
        "learning_rate": 1e-3,
        "center_crop": True,
        "loss": "progressive",
    }
    assert (given.output.output_dir, given.optimizer.optimizer) == (Path("maps/one"), "adamw")
    assert given.map.lora_alpha is None
    for line, message in (
        ("nonsense: 1", "sets 'nonsense', which is no option"),
        ("center_crop: 1", "sets center_crop to 1; give true or false"),
        ("loss: mse", "sets loss to 'mse'; choose one of central_difference"),
        ("rank: many", "invalid int value: 'many'"),
    ):
        file.write_text(line)
        with pytest.raises(SystemExit):
            parse_options(["--config", str(file)])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rank: 5\nrank: 6", "is no YAML: 'rank' comes twice"),
        (b"rank: [", "is no YAML: while parsing"),
        (b"rank: " + b"[" * 600, "is no YAML"),
        (b"rank: [[1]]", r"sets rank to \[\['1'\]\]; give a value or a list of values"),
        (b"lora_layers: {a: 1}", "sets lora_layers to {'a': '1'}; give a value"),
        (b"- rank", "is no mapping of option names to values"),
        (b"1: 2", "sets '1', which is no option"),
        (b"rank: !!python/object/apply:os.getcwd []", "is no YAML: could not determine a constructor"),
        (b"rank: 1\nlora_layers: \xe9", "--config: line 2 of '.*run.yaml' is not in UTF-8"),
        (b"random_flip:", "sets random_flip to None; give true or false"),
        (b"learning_rate: .nan", "invalid float value: '.nan'"),
        (b"learning_rate: 1e400", "--learning_rate is inf; give a finite number"),
    ],
)
def test_a_file_that_is_no_list_of_options_is_refused(tmp_path, capsys, content, message):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        parse_options(["--config", str(file), *BASE, *DATA])
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and re.search(message, line), line


def test_a_file_means_what_it_says(tmp_path):
    """YAML would read a number in base eight, one in base sixty, a date, and false."""
    file = tmp_path / "run.yaml"
    text = "output_dir: 0123\ntracker_project_name: 1:30\nrevision: 2024-01-02\nmixed_precision: no\nrandom_flip: Yes\n"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    given = parse_options(["--config", str(file), *BASE, *DATA])
    assert (given.output.output_dir, given.model.revision) == (Path("0123"), "2024-01-02")
    assert given.logging.tracker_project_name == "1:30"
    assert (given.machine.mixed_precision, given.preparation.random_flip) == ("no", True)


def test_the_command_line_goes_before_a_file_in_booleans_and_data_too(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "pretrained_model_name_or_path: miniature\ntrain_data_dir: images\ncenter_crop: true\nmixed_precision: no\n"
        "lora_layers: [to_q, to_k]\nreport_to: tensorboard, wandb\n"
    )
    given = parse_options(["--config", str(file), "--no-center_crop", *DATA])
    assert given.preparation.center_crop is False
    assert (given.data.dataset_name, given.data.train_data_dir) == ("miniature", None)
    assert (given.machine.mixed_precision, given.map.lora_layers) == ("no", "to_q,to_k")
    assert given.logging.report_to == "tensorboard,wandb"
    assert parse_options(["--config", str(file)]).preparation.center_crop


def test_help_says_what_every_option_is_and_its_default():
    parser = build_parser()
    assert [action.dest for action in parser._actions if not action.help] == []
    text = " ".join(parser.format_help().split())
    assert "Learning rate where it is highest. (default: 0.0001)" in text
    assert "default: None" not in text and "default: False" not in text


EXAMPLES = Path(__file__).parents[2] / "examples" / "training"


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_runs(file):
    given = parse_options(["--config", str(file)])
    assert given.output.output_dir.parent == Path("maps")


@pytest.mark.parametrize("file", sorted((EXAMPLES / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_its_examples(file):
    config = load_config_from_file(str(file))
    assert config.mixed_precision == "bf16"
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2
    if config.deepspeed_config:
        assert config.deepspeed_config["zero_stage"] == 2


def test_schedules_are_those_of_diffusers():
    """Which are written down, since diffusers takes seconds to import; piecewise_constant needs rules of its own."""
    schedules = next(option for option in options_of(ScheduleOptions) if option.name == "lr_scheduler").choices()
    assert set(schedules) == {schedule.value for schedule in SchedulerType} - {"piecewise_constant"}


@pytest.mark.parametrize("name", LOSSES.names())
def test_losses_have_the_defaults_of_their_options(name):
    loss = LOSSES.get(name)
    defaults = {field.name: field.default for field in fields(loss)}
    taken = LossOptions().taken_by(loss)
    assert taken and taken == {name: defaults[name] for name in taken}
