"""What a trained map says of itself, and its way to the Hub."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from accelerate import Accelerator

from ..files.foreign import one_line
from ..pipelines.model_card import MAP_REPOSITORY, create_repository, upload
from .arguments import TRAJECTORIES
from .errors import TrainingError
from .setup import diagonal_fraction

logger = logging.getLogger(__name__)


def origin(given: argparse.Namespace) -> dict[str, str | None]:
    """Of what the map is a map, and its licence."""
    return {
        "base_model": given.pretrained_model_name_or_path,
        "base_revision": given.revision,
        "license": given.license,
    }


def facts(given: argparse.Namespace, steps: int, resolution: int, accelerator: Accelerator) -> dict[str, Any]:
    """What the reader of the map's card wants to know of its training.

    Args:
        steps: updates of the weights.
        resolution: of the images.
    """
    # The name of a folder need not be text.
    data = one_line(given.dataset_name or (given.train_data_dir and given.train_data_dir.name) or "prompts")
    names = "loss guidance_scale learning_rate lr_scheduler optimizer ema_decay rank condition_on_observation seed"
    return {
        "steps": steps,
        "batch_size": given.train_batch_size * given.gradient_accumulation_steps * accelerator.num_processes,
        "data": f"samples of the base at {data}" if given.teacher_samples or given.prompts_file else data,
        "resolution": resolution,
        "mixed_precision": accelerator.mixed_precision,
        **{name: getattr(given, name) for name in names.split()},
        **(
            {"regression_weight": given.regression_weight}
            if given.loss == TRAJECTORIES
            else {"diagonal_fraction": diagonal_fraction(given)}
        ),
    }


def make_repository(given: argparse.Namespace) -> str:
    """The full name of the map's repository on the Hub, which is made before there is anything to lose.

    Raises:
        TrainingError: it cannot be made.
    """
    name = given.hub_model_id or given.output_dir.resolve().name
    try:
        return create_repository(name, given.hub_token)
    except Exception as error:
        raise TrainingError(
            f"--push_to_hub cannot create the repository {name} ({_reason(error)}); log in with hf auth login, name "
            "another with --hub_model_id, or drop --push_to_hub"
        ) from error


def push(given: argparse.Namespace, repository: str) -> None:
    """Uploads the finished map.

    Raises:
        TrainingError: it cannot be uploaded.
    """
    folder = given.output_dir
    try:
        upload(folder, repository, given.hub_token, files=MAP_REPOSITORY)
    except Exception as error:
        files = " ".join(f"--include {name}" for name in MAP_REPOSITORY)
        raise TrainingError(
            f"the map in {folder} is complete, but pushing it to {repository} failed ({_reason(error)}); push it with "
            f"hf upload {repository} {folder} {files}"
        ) from error
    logger.info("pushed to %s", repository)


def _reason(error: Exception) -> str:
    """What the Hub says, in one line."""
    return " ".join(str(error).split())
