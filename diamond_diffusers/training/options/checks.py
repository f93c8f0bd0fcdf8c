"""Finds wrong options of a run; each fault is one sentence that names the option and the remedy."""

from __future__ import annotations

from collections.abc import Iterator

from ...files.foreign import writable
from ..losses import LOSSES
from .fields import options_of, wrong_number
from .records import DataOptions, LossOptions, MapOptions, Options, PreparationOptions

TRACKERS = ("tensorboard", "wandb", "none")


def problems(options: Options) -> Iterator[str]:
    """All faults of the options; cheap checks come first, since the last ones import the loss."""
    yield from _wrong_values(options)
    if options.model.pretrained_model_name_or_path is None:
        yield "--pretrained_model_name_or_path is missing; name a base model"
    yield from _data(options.data)
    yield from _preparation(options.preparation, options.data)
    yield from _map(options.map)
    yield from _optimisation(options)
    yield from _output(options)
    yield from _without_effect(options)
    yield from _loss(options)


def _wrong_values(options: Options) -> Iterator[str]:
    """The faults of each value by itself."""
    for option, value in options.values():
        if option.kind in (int, float) and value is not None:
            if (wrong := wrong_number(value, option.check)) is not None:
                yield f"--{option.flag} {wrong}"
        elif isinstance(value, str) and writable(value) != value:
            yield (
                f"--{option.flag} is '{writable(value)}', which is not in UTF-8; set the terminal to UTF-8, or write "
                "it anew"
            )


def _data(data: DataOptions) -> Iterator[str]:
    if data.dataset_name is not None and data.train_data_dir is not None:
        yield "both --dataset_name and --train_data_dir are given; give one"
    if not data.has_images and data.prompts_file is None:
        yield "no data: give --dataset_name, --train_data_dir, or --prompts_file for samples of the teacher"
    if data.has_images and data.prompts_file is not None:
        yield "--prompts_file is for samples of the teacher; drop it, or the images"
    if data.streaming and not data.is_a_dataset:
        yield "--streaming needs a --dataset_name for datasets"


def _preparation(preparation: PreparationOptions, data: DataOptions) -> Iterator[str]:
    if data.streaming and preparation.dataloader_num_workers > 0:
        yield "--dataloader_num_workers cannot be used with --streaming, whose order would depend on it; leave it at 0"
    for name in ("cache_latents", "cache_trajectories"):
        if not getattr(preparation, name):
            continue
        if data.streaming:
            yield f"--{name} needs a dataset of known length; drop --streaming"
        if preparation.random_flip:
            yield f"--{name} encodes every image once; drop --random_flip"
    if preparation.cache_trajectories and preparation.cache_latents:
        yield "--cache_trajectories keeps the latents too; drop --cache_latents"


def _map(options: MapOptions) -> Iterator[str]:
    if options.initial_map is None:
        return
    for described in options_of(MapOptions):
        value = getattr(options, described.name)
        if described.name != "initial_map" and value != described.default:
            yield f"--{described.flag} is {value}, but --initial_map brings its own; drop it"


def _optimisation(options: Options) -> Iterator[str]:
    optimizer, schedule, steps = options.optimizer, options.schedule, options.updates.max_train_steps
    if optimizer.use_8bit_adam and optimizer.optimizer != "adamw":
        yield "--use_8bit_adam is for --optimizer adamw"
    if schedule.lr_scheduler == "constant" and schedule.lr_warmup_steps is not None:
        yield "--lr_scheduler constant has no warm-up; drop --lr_warmup_steps, or take constant_with_warmup"
    if schedule.lr_scheduler != "polynomial":
        return
    if schedule.warmup_steps >= steps:
        yield (
            f"--lr_warmup_steps is {schedule.warmup_steps}, after which --lr_scheduler polynomial falls, but "
            f"--max_train_steps is {steps}; lower the former, or take another schedule"
        )
    if optimizer.learning_rate <= 1e-7:
        yield (
            f"--learning_rate is {optimizer.learning_rate}, but --lr_scheduler polynomial falls to 1e-07; give more, "
            "or take another schedule"
        )


def _output(options: Options) -> Iterator[str]:
    if options.output.hub_model_id is not None and not options.output.push_to_hub:
        yield "--hub_model_id is given without --push_to_hub; add that"
    trackers = options.logging.report_to.split(",")
    if set(trackers) - set(TRACKERS) or ("none" in trackers and len(trackers) > 1):
        yield f"--report_to is {options.logging.report_to!r}; name {', '.join(TRACKERS)}"


def _without_effect(options: Options) -> Iterator[str]:
    """Options that are set and that others make ineffective."""
    data, schedule = options.data, options.schedule.lr_scheduler
    images = "images that are trained on", not options.learns_from_samples
    dataset = "a --dataset_name for datasets", data.is_a_dataset
    rows = "a dataset or a folder", data.prompts_file is None
    metrics = "--validation_metrics", options.validation.validation_metrics
    cache = "--cache_latents or --cache_trajectories", options.preparation.keeps_rows
    counts = {
        "lr_num_cycles": ("--lr_scheduler cosine_with_restarts", schedule == "cosine_with_restarts"),
        "lr_power": ("--lr_scheduler polynomial", schedule == "polynomial"),
        "teacher_num_inference_steps": ("samples of the teacher", options.learns_from_samples),
        "shuffle_buffer_size": ("--streaming", data.streaming),
        **dict.fromkeys(("random_flip", "center_crop"), images),
        **dict.fromkeys(("image_column", "dataset_split", "dataset_config_name"), dataset),
        **dict.fromkeys(("caption_column", "max_train_samples"), rows),
        **dict.fromkeys(("cache_dtype", "cache_location", "teacher_batch_size"), cache),
        **dict.fromkeys(("num_validation_observations", "num_validation_samples"), metrics),
    }
    for option, value in options.values():
        needed, is_there = counts.get(option.name, ("", True))
        if not is_there and value != option.default:
            yield f"--{option.flag} is for {needed}, and has no effect here; drop it"


def _loss(options: Options) -> Iterator[str]:
    """Options that the chosen loss cannot be used with, or does not use."""
    name, loss = options.loss.name, LOSSES.get(options.loss.name, "--loss")
    if options.machine.gradient_checkpointing and loss.needs_forward_mode:
        yield (
            f"--gradient_checkpointing has no forward-mode rule, which --loss {name} needs; drop it, or take "
            "--loss central_difference"
        )
    if options.model.quantize == "fp8" and loss.needs_forward_mode:
        yield (
            f"--quantize fp8 has no forward-mode rule, which --loss {name} needs; take int8 or nf4, or "
            "--loss central_difference"
        )
    if options.preparation.num_trajectories != PreparationOptions().num_trajectories and not loss.needs_trajectories:
        yield "--num_trajectories is for --loss trajectories, and has no effect here; drop it"
    if options.preparation.cache_trajectories and not loss.needs_trajectories:
        yield "--cache_trajectories is for --loss trajectories; give that too"
    unused = vars(LossOptions()).keys() - {"name", "modules"} - options.loss.taken_by(loss).keys()
    for field in sorted(unused):
        if getattr(options.loss, field) != getattr(LossOptions(), field):
            takers = [other for other in LOSSES.names() if field in options.loss.taken_by(LOSSES.get(other))]
            yield f"--{field} is for --loss {' or '.join(takers)}, and has no effect here; drop it"
