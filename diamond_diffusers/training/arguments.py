"""Options of the trainer, under the names that diffusers' training scripts give them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import yaml
from diffusers.optimization import SchedulerType

from ..files.foreign import ForeignFileError, read_text, writable
from .losses import LOSSES

MINIATURE = "miniature"
"""Names the embedded model, and the world that it draws."""

TRAJECTORIES = "trajectories"
"""Names the loss of `TrajectoryLoss`."""

DEFAULT_WARMUP_STEPS = 100

MAY_CHANGE = frozenset(
    """
    config cache_dir dataloader_num_workers max_train_steps learning_rate lr_scheduler lr_warmup_steps lr_num_cycles
    lr_power max_grad_norm allow_tf32 gradient_checkpointing output_dir logging_dir report_to tracker_project_name
    checkpointing_steps checkpoints_total_limit resume_from_checkpoint validation_prompt num_validation_images
    validation_steps push_to_hub hub_model_id hub_token license
    """.split()  # noqa: SIM905
)
"""Options that a resumed run may have other than before; all others decide what it is."""

SCHEDULES = [schedule.value for schedule in SchedulerType if schedule != SchedulerType.PIECEWISE_CONSTANT]

_SOURCES = ("dataset_name", "train_data_dir", "prompts_file")
"""Options that name the data; the command line's replaces that of a file."""

_TRACKERS = ("tensorboard", "wandb", "none")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a run, checked.

    Args:
        arguments: as on the command line; None for those of this process. Options of a file named by `--config` count
            where the command line does not give them.

    Raises:
        SystemExit: an option is unknown, out of range, or cannot be used with another.
    """
    parser = build_parser()
    on_line = parser.parse_known_args(arguments)[0]
    defaults = {action.dest: action.default for action in parser._actions}
    if on_line.config is not None:
        settings = _read_config(parser, on_line.config)
        if any(getattr(on_line, source) is not None for source in _SOURCES):
            settings = {name: value for name, value in settings.items() if name not in _SOURCES}
        parser.set_defaults(**settings)
    given = parser.parse_args(arguments)
    given.report_to = ",".join(name.strip() for name in given.report_to.split(","))
    for problem in [*_problems(given), *_without_effect(given, defaults)]:
        parser.error(problem)
    return given


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m diamond_diffusers.training.distill",
        description="Distils a Posterior Diamond Map from a text-to-image model.",
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    parser.add_argument("--config", type=Path, help="YAML file of these options; the command line goes before it.")
    _add_model_options(parser.add_argument_group("model"))
    _add_data_options(parser.add_argument_group("data"))
    _add_distillation_options(parser.add_argument_group("distillation"))
    _add_optimizer_options(parser.add_argument_group("optimisation"))
    _add_machine_options(parser.add_argument_group("machine"))
    _add_output_options(parser.add_argument_group("output"))
    return parser


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--pretrained_model_name_or_path", help="Base: folder or Hub repository, or 'miniature' for the embedded one.")
    add("--revision", help="Of the base on the Hub.")
    add("--variant", help="Of the base's weight files, such as fp16.")
    add("--cache_dir", help="For downloads.")
    add("--max_sequence_length", type=int, help="Of the prompts, where the base has that argument.")


def _switch_of(group: argparse._ArgumentGroup) -> Callable[..., argparse.Action]:
    """What adds an option that is off, `--name` sets and `--no-name` unsets."""
    return partial(group.add_argument, action=argparse.BooleanOptionalAction, default=False)


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, _switch_of(group)
    add("--dataset_name", help="A dataset for `datasets`, local or on the Hub, or 'miniature' for the embedded world.")
    add("--dataset_config_name", help="Configuration of the dataset.")
    add("--dataset_split", default="train", help="Of the dataset.")
    add("--train_data_dir", type=Path, help="Folder of images with metadata.jsonl, metadata.csv or .txt captions.")
    add("--prompts_file", type=Path, help="Prompts, one a line, for a run on samples of the teacher.")
    switch("--teacher_samples", help="Train on samples of the teacher instead of the images.")
    add("--teacher_num_inference_steps", type=int, default=20, help="Of one sample of the teacher.")
    switch("--streaming", help="Read the dataset as it is downloaded.")
    add("--shuffle_buffer_size", type=int, default=1000, help="Of a streamed dataset.")
    add("--image_column", default="image", help="Of the dataset.")
    add("--caption_column", default="text", help="Of the dataset or the metadata.")
    add("--max_train_samples", type=int, help="Use the first so many rows.")
    add("--resolution", type=int, help="Of the square images, in pixels; by default the base's own.")
    switch("--center_crop", help="Crop at the centre instead of at random.")
    switch("--random_flip", help="Mirror half of the images.")
    switch("--cache_latents", help="Encode images and captions once, into the output folder.")
    switch("--cache_trajectories", help="Run the teacher's inner flow once for each image, for --loss trajectories.")
    add("--dataloader_num_workers", type=int, default=0, help="Processes that read images ahead.")


def _add_distillation_options(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, _switch_of(group)
    add("--loss", choices=sorted([*LOSSES, TRAJECTORIES]), default="lagrangian", help="Of the steps.")
    add(
        "--diagonal_fraction",
        type=float,
        help="Share of the rows that learn the velocity; 0.75 by default, none with trajectories.",
    )
    add("--regression_weight", type=float, default=0.05, help="Beside the energy score, with --loss trajectories.")
    add("--adaptive_weight_power", type=float, default=0.0, help="p of the weights 1 / (loss + 0.01)^p; 0 for none.")
    add("--guidance_scale", type=float, default=3.0, help="Of the teacher; baked into the map.")
    add("--rank", type=int, default=64, help="Of the LoRA.")
    add("--lora_alpha", type=float, help="Scale of the LoRA; by default its rank.")
    add(
        "--lora_layers", help="Names or endings of the adapted modules, comma-separated; by default every linear layer."
    )
    switch("--condition_on_observation", help="Tell the network the noisy image itself too.")


def _add_optimizer_options(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, _switch_of(group)
    add("--train_batch_size", type=int, default=4, help="Rows of one process in one forward pass.")
    add("--gradient_accumulation_steps", type=int, default=1, help="Batches of an update.")
    add("--max_train_steps", type=int, default=1000, help="Updates of the weights.")
    add("--learning_rate", type=float, default=1e-4, help="At its highest.")
    add("--lr_scheduler", choices=SCHEDULES, default="constant_with_warmup", help="One of diffusers' schedules.")
    add("--lr_warmup_steps", type=int, help="100 where the schedule has a warm-up.")
    add("--lr_num_cycles", type=int, default=1, help="Of cosine_with_restarts.")
    add("--lr_power", type=float, default=1.0, help="Of polynomial.")
    add("--optimizer", type=str.lower, choices=("adamw", "prodigy"), default="adamw", help="Prodigy is of prodigyopt.")
    switch("--use_8bit_adam", help="AdamW of bitsandbytes.")
    add("--adam_beta1", type=float, default=0.9, help="Of either optimiser.")
    add("--adam_beta2", type=float, default=0.999, help="Of either optimiser.")
    add("--adam_weight_decay", type=float, default=0.0, help="Of either optimiser.")
    add("--adam_epsilon", type=float, default=1e-8, help="Of either optimiser.")
    add("--max_grad_norm", type=float, default=1.0, help="To which gradients are clipped; 0 for not at all.")
    add("--ema_decay", type=float, default=0.9999, help="Of the averaged weights, which are those saved; 0 for none.")


def _add_machine_options(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, _switch_of(group)
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="By default as accelerate is configured.")
    switch("--allow_tf32", help="Quicker on NVIDIA Ampere and later.")
    switch("--gradient_checkpointing", help="Not with the lagrangian loss.")
    add("--seed", type=int, default=0, help="Of all that is random.")


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    add, switch = group.add_argument, _switch_of(group)
    add("--output_dir", type=Path, default=Path("diamond-map"), help="The map is saved here.")
    add("--logging_dir", default="logs", help="Of the trackers, inside the output folder.")
    add("--report_to", default="tensorboard", help="tensorboard, wandb, none, or several, comma-separated.")
    add("--tracker_project_name", default="diamond-map", help="In the trackers.")
    add("--checkpointing_steps", type=int, default=500, help="From one checkpoint to the next.")
    add("--checkpoints_total_limit", type=int, help="Of checkpoints kept.")
    add("--resume_from_checkpoint", help="A folder, or 'latest'.")
    add("--validation_prompt", help="Drawn while training and for the model card.")
    add("--num_validation_images", type=int, default=4, help="In a row of the grid.")
    add("--validation_steps", type=int, default=500, help="From one grid to the next.")
    switch("--push_to_hub", help="Upload the map and its card.")
    add("--hub_model_id", help="Repository; by default the name of the output folder.")
    add("--hub_token", help="By default that of hf auth login.")
    add("--license", default="other", help="Of the map, in its model card.")


class _OptionLoader(yaml.SafeLoader):
    """Reads what is written as text, so that 0123 and 1e-4 are what the command line would have; and null as None."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"{key!r} comes twice")
        return super().construct_mapping(node, deep)


_SWITCHES = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)


def _read_config(parser: argparse.ArgumentParser, file: Path) -> dict[str, object]:
    """Options of a file, as the parser would have them from the command line."""
    options = {action.dest: action for action in parser._actions}
    try:
        settings = yaml.load(read_text(file), _OptionLoader) or {}
    except ForeignFileError as error:
        parser.error(f"--config: {error}")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        parser.error(f"--config {file} is no YAML: {' '.join(str(error).split())}")
    if not isinstance(settings, dict):
        parser.error(f"--config {file} is no mapping of option names to values")
    for name, value in settings.items():
        if name not in options or name in ("config", "help"):
            parser.error(f"--config {file} sets {name!r}, which is no option")
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            settings[name] = value = ",".join(value)
        if not isinstance(value, str | None):
            parser.error(f"--config {file} sets {name} to what is neither a value nor a list of values")
        if isinstance(options[name], argparse.BooleanOptionalAction):
            if str(value).lower() not in _SWITCHES:
                parser.error(f"--config {file} sets {name} to {value}; it must be true or false")
            settings[name] = _SWITCHES[value.lower()]
        elif value is not None:
            # Text defaults are converted and checked like what the command line gives.
            choices, convert = options[name].choices, options[name].type or str
            if choices is not None and convert(value) not in choices:
                parser.error(f"--config {file} sets {name} to {value!r}; choose one of {', '.join(choices)}")
    return settings


def _problems(given: argparse.Namespace) -> list[str]:
    """What is wrong with the options, each as a sentence."""
    problems = _numbers_out_of_range(given)
    problems += [
        f"--{name} is '{writable(value)}', which is not in UTF-8; set the terminal to UTF-8, or write it anew"
        for name, value in vars(given).items()
        if isinstance(value, str) and writable(value) != value
    ]
    warmup = DEFAULT_WARMUP_STEPS if given.lr_warmup_steps is None else given.lr_warmup_steps
    images = given.dataset_name is not None or given.train_data_dir is not None
    trackers = given.report_to.split(",")
    rules = {
        "--pretrained_model_name_or_path is missing; name a base model": given.pretrained_model_name_or_path is None,
        "both --dataset_name and --train_data_dir are given; give one": given.dataset_name is not None
        and given.train_data_dir is not None,
        "no data: give --dataset_name, --train_data_dir, or --prompts_file for samples of the teacher": not images
        and given.prompts_file is None,
        "--prompts_file is for samples of the teacher; drop it, or the images": images
        and given.prompts_file is not None,
        "--gradient_checkpointing has no forward-mode rule, which --loss lagrangian needs; drop it, or take "
        "--loss central_difference": given.gradient_checkpointing and given.loss == "lagrangian",
        "--streaming needs a --dataset_name for datasets": given.streaming and given.dataset_name in (None, MINIATURE),
        "--cache_latents needs a dataset of known length; drop --streaming": given.cache_latents and given.streaming,
        "--cache_latents encodes every image once; drop --random_flip": given.cache_latents and given.random_flip,
        "--cache_latents is of no use with samples of the teacher; drop it": given.cache_latents
        and (given.teacher_samples or not images),
        "--dataloader_num_workers cannot be used with --streaming, whose order would depend on it; leave it at 0": (
            given.streaming and given.dataloader_num_workers > 0
        ),
        "--cache_trajectories is for --loss trajectories; give that too": given.cache_trajectories
        and given.loss != TRAJECTORIES,
        "--cache_trajectories needs a dataset of known length; drop --streaming": given.cache_trajectories
        and given.streaming,
        "--cache_trajectories encodes every image once; drop --random_flip": given.cache_trajectories
        and given.random_flip,
        "--cache_trajectories keeps the latents too; drop --cache_latents": given.cache_trajectories
        and given.cache_latents,
        "--cache_trajectories is for images; drop it, or the samples of the teacher": given.cache_trajectories
        and (given.teacher_samples or not images),
        "--diagonal_fraction is for the other losses; drop it, or --loss trajectories": given.loss == TRAJECTORIES
        and given.diagonal_fraction is not None,
        "--adaptive_weight_power is for the other losses; drop it, or --loss trajectories": given.loss == TRAJECTORIES
        and given.adaptive_weight_power != 0,
        "--use_8bit_adam is for --optimizer adamw": given.use_8bit_adam and given.optimizer != "adamw",
        "--lr_scheduler constant has no warm-up; drop --lr_warmup_steps, or take constant_with_warmup": (
            given.lr_scheduler == "constant" and given.lr_warmup_steps is not None
        ),
        f"--lr_warmup_steps is {warmup}, after which --lr_scheduler polynomial falls, but --max_train_steps is "
        f"{given.max_train_steps}; lower the former, or take another schedule": given.lr_scheduler == "polynomial"
        and warmup >= given.max_train_steps,
        f"--learning_rate is {given.learning_rate}, but --lr_scheduler polynomial falls to 1e-07; give more, or take "
        "another schedule": given.lr_scheduler == "polynomial" and given.learning_rate <= 1e-7,
        "--hub_model_id is given without --push_to_hub; add that": given.hub_model_id is not None
        and not given.push_to_hub,
        f"--report_to is {given.report_to!r}; name {', '.join(_TRACKERS)}": bool(set(trackers) - set(_TRACKERS))
        or ("none" in trackers and len(trackers) > 1),
    }
    return problems + [problem for problem, broken in rules.items() if broken]


def _numbers_out_of_range(given: argparse.Namespace) -> list[str]:
    """What is wrong with each number by itself, as a sentence."""
    numbers = {name: value for name, value in vars(given).items() if type(value) in (int, float)}
    problems = [
        f"--{name} is {value}; it must be a finite number"
        for name, value in numbers.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    for name, value in numbers.items():
        least, most = _RANGES.get(name, (-math.inf, math.inf))
        if value < least:
            problems.append(f"--{name} is {value}; it must be at least {least}")
        if value > (_MOST if isinstance(value, int) and most == math.inf else most):
            problems.append(f"--{name} is {value:.6g}; it must be at most {_MOST if most == math.inf else most}")
    if given.guidance_scale <= 0:
        problems.append(f"--guidance_scale is {given.guidance_scale}; it must be above 0, and is 1 without guidance")
    for name in ("diagonal_fraction", "ema_decay"):
        if getattr(given, name) is not None and not 0 <= getattr(given, name) <= 1:
            problems.append(f"--{name} is {getattr(given, name)}; it must lie between 0 and 1")
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(given, name) < 1:
            problems.append(f"--{name} is {getattr(given, name)}; it must be at least 0 and below 1")
    if given.adam_epsilon <= 0:
        problems.append(
            f"--adam_epsilon is {given.adam_epsilon}; it must be above 0, since a map's gradients begin at 0"
        )
    if given.lora_alpha is not None and given.lora_alpha <= 0:
        problems.append(f"--lora_alpha is {given.lora_alpha}; it must be above 0, since the LoRA is multiplied by it")
    return problems


def _without_effect(given: argparse.Namespace, defaults: Mapping[str, object]) -> list[str]:
    """Options that are set and that others make ineffective, each as a sentence."""
    drawn = given.teacher_samples or given.prompts_file is not None
    images = "images that are trained on", not drawn
    dataset = "a --dataset_name for datasets", given.dataset_name not in (None, MINIATURE)
    rows = "a dataset or a folder", given.prompts_file is None
    counts = {
        "regression_weight": ("--loss trajectories", given.loss == TRAJECTORIES),
        "lr_num_cycles": ("--lr_scheduler cosine_with_restarts", given.lr_scheduler == "cosine_with_restarts"),
        "lr_power": ("--lr_scheduler polynomial", given.lr_scheduler == "polynomial"),
        "teacher_num_inference_steps": ("samples of the teacher", drawn),
        "shuffle_buffer_size": ("--streaming", given.streaming),
        **dict.fromkeys(("random_flip", "center_crop"), images),
        **dict.fromkeys(("image_column", "dataset_split", "dataset_config_name"), dataset),
        **dict.fromkeys(("caption_column", "max_train_samples"), rows),
    }
    return [
        f"--{name} is for {needed}, and has no effect here; drop it"
        for name, (needed, is_there) in counts.items()
        if not is_there and getattr(given, name) != defaults[name]
    ]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


_MOST = 2**31 - 1
"""Of whole numbers that have no bound of their own."""

_RANGES: dict[str, tuple[float, float]] = {
    "max_sequence_length": (1, 65_536),
    "teacher_num_inference_steps": (1, 10_000),
    "shuffle_buffer_size": (1, math.inf),
    "max_train_samples": (1, math.inf),
    "resolution": (8, 16_384),
    "dataloader_num_workers": (0, 1024),
    "adaptive_weight_power": (0, math.inf),
    "regression_weight": (0, math.inf),
    "rank": (1, 65_536),
    "train_batch_size": (1, 65_536),
    "gradient_accumulation_steps": (1, math.inf),
    "max_train_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "lr_warmup_steps": (0, math.inf),
    "lr_num_cycles": (1, math.inf),
    "lr_power": (0, math.inf),
    "adam_weight_decay": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "checkpointing_steps": (1, math.inf),
    "checkpoints_total_limit": (1, math.inf),
    "num_validation_images": (1, 1024),
    "validation_steps": (1, math.inf),
    "seed": (0, 2**32 - 1),
}
