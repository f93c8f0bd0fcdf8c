"""The facts that a trained map declares, and its upload to the Hub."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from ..files.foreign import one_line
from ..files.output import prepare_folder, writing
from ..pipelines.model_card import MAP_REPOSITORY, create_repository, upload
from .errors import TrainingError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .data.held_out import Rows
    from .losses.base import DistillationLoss
    from .options.records import LoggingOptions, Options, OutputOptions

logger = logging.getLogger(__name__)


def prepare_output(options: OutputOptions, logging_options: LoggingOptions) -> None:
    """Creates the output folders before training, so that nothing is lost if they cannot be written to.

    Raises:
        TrainingError: a folder cannot be written to.
    """
    try:
        prepare_folder(options.output_dir, "--output_dir")
        if "tensorboard" in logging_options.trackers:
            prepare_folder(options.output_dir / logging_options.logging_dir, "--logging_dir")
    except ValueError as error:
        raise TrainingError(str(error)) from error


class Origin(TypedDict):
    """The base and the licence of a map, in the form that `declare_map` and `save_diamond_map` take."""

    base_model: str | None
    base_revision: str | None
    license: str | None


def writing_logs(options: Options) -> AbstractContextManager[None]:
    """Context in which trackers write into their folder, whose errors are told as such."""
    return writing(options.output.output_dir / options.logging.logging_dir)


def origin(options: Options) -> Origin:
    """The base of the map, and its licence; a base in a folder is found from wherever the map is loaded."""
    name = options.model.pretrained_model_name_or_path
    assert name is not None, "the options are checked"
    is_folder = not options.model.is_miniature and os.path.isdir(name)
    return {
        "base_model": os.path.abspath(name) if is_folder else name,
        "base_revision": options.model.revision,
        "license": options.output.license,
    }


def facts(
    options: Options, loss: DistillationLoss, steps: int, resolution: int, accelerator: Accelerator
) -> dict[str, Any]:
    """Facts about the training, for the reader of the map's card.

    Args:
        loss: the loss; its own options are among the facts.
        steps: number of updates of the weights.
        resolution: resolution of the images.
    """
    data, updates = options.data, options.updates
    # The name of a folder need not be text.
    name = one_line(data.dataset_name or (data.train_data_dir and data.train_data_dir.name) or "prompts")
    told = "loss guidance_scale learning_rate lr_scheduler optimizer ema_decay rank condition_on_observation seed"
    if loss.needs_trajectories:
        told += " num_trajectories"
    values = options.by_flag()
    initial_map = options.map.initial_map
    if initial_map is not None and os.path.isdir(initial_map):
        # As for the data, where it is on this machine tells others nothing.
        initial_map = one_line(Path(initial_map).resolve().name)
    return {
        "steps": steps,
        "batch_size": updates.train_batch_size * updates.gradient_accumulation_steps * accelerator.num_processes,
        "data": f"samples of the base at {name}" if options.learns_from_samples else name,
        "resolution": resolution,
        "mixed_precision": accelerator.mixed_precision,
        **({} if options.model.quantize is None else {"quantize": options.model.quantize}),
        **{option: values[option] for option in told.split()},
        **({} if initial_map is None else {"initial_map": initial_map}),
        **options.loss.taken_by(type(loss)),
    }


@dataclass
class Effort:
    """What a run costs, over all its parts.

    Attributes:
        seconds: of wall-clock time in which it computed rows to keep and updates; not those of validation, checkpoints
            and loading.
    """

    seconds: float = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Context whose time counts."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def facts(self, rows: Rows, accelerator: Accelerator) -> dict[str, Any]:
        """Rows, hours and hardware, for the reader of the map's card."""
        # The length of a streamed dataset is not known.
        counts = {} if rows.is_streamed else {"rows": len(rows.training)}
        return {**counts, "hours": float(f"{self.seconds / 3600:.3g}"), "hardware": hardware(accelerator)}


def hardware(accelerator: Accelerator) -> str:
    """What a run computes on, such as `8 x NVIDIA H200`."""
    kind = accelerator.device.type
    if kind == "cpu":
        name = f"CPU with {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    else:
        # Some kinds of devices have no names.
        named = getattr(getattr(torch, kind, None), "get_device_name", None)
        name = one_line(named(accelerator.device)) if named else kind.upper()
    return f"{accelerator.num_processes} x {name}" if accelerator.num_processes > 1 else name


def make_repository(options: OutputOptions) -> str:
    """Creates the map's repository on the Hub, before training, and returns its full name.

    Raises:
        TrainingError: the repository cannot be created.
    """
    name = options.hub_model_id or options.output_dir.resolve().name
    try:
        return create_repository(name, options.hub_token)
    except Exception as error:
        raise TrainingError(
            f"--push_to_hub cannot create the repository {name} ({_reason(error)}); log in with hf auth login, name "
            "another with --hub_model_id, or drop --push_to_hub"
        ) from error


def push(options: OutputOptions, repository: str) -> None:
    """Uploads the finished map.

    Raises:
        TrainingError: the map cannot be uploaded.
    """
    folder = options.output_dir
    try:
        upload(folder, repository, options.hub_token, files=MAP_REPOSITORY)
    except Exception as error:
        files = " ".join(f"--include {name}" for name in MAP_REPOSITORY)
        raise TrainingError(
            f"the map in {folder} is complete, but pushing it to {repository} failed ({_reason(error)}); push it with "
            f"hf upload {repository} {folder} {files}"
        ) from error
    logger.info("pushed to %s", repository)


def _reason(error: Exception) -> str:
    """The Hub's error message, in one line."""
    return " ".join(str(error).split())
