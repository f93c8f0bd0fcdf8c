"""What a run is made of: accelerator, base model, optimiser, schedule."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import (
    AutocastKwargs,
    ProjectConfiguration,
    is_bnb_available,
    is_tensorboard_available,
    is_wandb_available,
)
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer

from ..files.foreign_models import UNLOADABLE, why_unloadable
from ..files.output import prepare_folder
from ..pipelines.pipeline import DiamondMapPipeline
from .arguments import DEFAULT_WARMUP_STEPS, MINIATURE, TRAJECTORIES
from .errors import TrainingError
from .module import DistillationLoss
from .trajectories import TrajectoryLoss

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_packages(given: argparse.Namespace) -> None:
    """Checks that what the options need is installed.

    Raises:
        TrainingError: a tracker or an optimiser is not.
    """
    for name in _trackers(given):
        # accelerate would leave it out.
        if not _TRACKERS_INSTALLED[name]():
            raise TrainingError(f"--report_to {name} needs the package {name}; install it, or take --report_to none")
    if given.optimizer == "prodigy" and importlib.util.find_spec("prodigyopt") is None:
        raise TrainingError("--optimizer prodigy needs the package prodigyopt; install it with pip install prodigyopt")
    if given.use_8bit_adam and not is_bnb_available():
        raise TrainingError("--use_8bit_adam needs the package bitsandbytes; install it with pip install bitsandbytes")


_TRACKERS_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def _trackers(given: argparse.Namespace) -> list[str]:
    return [name for name in given.report_to.split(",") if name != "none"]


def prepare_output(given: argparse.Namespace) -> None:
    """Creates the folders that are written to, before there is anything to lose.

    Raises:
        TrainingError: one cannot be written to.
    """
    try:
        prepare_folder(given.output_dir, "--output_dir")
        if "tensorboard" in _trackers(given):
            prepare_folder(given.output_dir / given.logging_dir, "--logging_dir")
    except ValueError as error:
        raise TrainingError(str(error)) from error


def make_accelerator(given: argparse.Namespace) -> Accelerator:
    """What distributes a run and logs it."""
    return Accelerator(
        gradient_accumulation_steps=given.gradient_accumulation_steps,
        mixed_precision=given.mixed_precision,
        log_with=_trackers(given) or None,
        project_config=ProjectConfiguration(str(given.output_dir), str(given.output_dir / given.logging_dir)),
        # The base is in half precision itself; forward-mode differentiation of a UNet fails under autocast.
        kwargs_handlers=[AutocastKwargs(enabled=False)],
    )


def prepare_distribution(accelerator: Accelerator, given: argparse.Namespace) -> None:
    """Refuses ways to distribute that cannot train a map, and tells FSDP its precision and DeepSpeed the batch.

    Raises:
        TrainingError: forward-mode differentiation meets unused parameters; weights are sharded in a way that mixes
            trained and frozen ones; or a sharded model would have to draw samples.
    """
    kind, handler = accelerator.distributed_type, accelerator.ddp_handler
    if given.loss == "lagrangian" and handler is not None and handler.find_unused_parameters:
        raise TrainingError(
            "find_unused_parameters has no forward-mode rule, which --loss lagrangian needs; turn it off, since every "
            "trained parameter is used, or take --loss central_difference"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise TrainingError(
            "FSDP of version 1 joins trained and frozen weights of different precision; set fsdp_version: 2 in the "
            "configuration of accelerate"
        )
    if kind == DistributedType.FSDP and (given.teacher_samples or given.prompts_file is not None):
        raise TrainingError("a model sharded by FSDP cannot draw samples of the teacher; give images, or take DDP")
    if kind == DistributedType.FSDP and given.cache_trajectories:
        raise TrainingError(
            "a model sharded by FSDP cannot draw trajectories to keep, since processes have different numbers of rows; "
            "drop --cache_trajectories, or take DDP"
        )
    if kind == DistributedType.FSDP:
        # It would cast what is trained; the base is in half precision already.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if kind == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            raise TrainingError("DeepSpeed's ZeRO stage 3 takes weights apart that the map reads; take stage 1 or 2")
        # It would read them from a data loader, and there is none.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = given.train_batch_size
        plugin.deepspeed_config["gradient_accumulation_steps"] = given.gradient_accumulation_steps


def load_base(given: argparse.Namespace, dtype: torch.dtype) -> DiamondMapPipeline:
    """The base model, without the Diamond Map that it may come with; its autoencoder is in float32.

    Raises:
        TrainingError: it cannot be loaded.
    """
    name = given.pretrained_model_name_or_path
    hub = {key: getattr(given, key) for key in ("revision", "variant", "cache_dir") if getattr(given, key) is not None}
    dtypes = {"default": dtype, "vae": torch.float32}
    try:
        pipe = DiamondMapPipeline.from_pretrained(None if name == MINIATURE else name, dtype=dtypes, **hub)
    except UNLOADABLE as error:
        reason = why_unloadable(error)
        raise TrainingError(f"--pretrained_model_name_or_path {name} cannot be loaded: {reason}") from error
    if pipe.family.posterior_map is not None:
        pipe.unload_diamond_map()
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    return pipe


def lora_layers(given: argparse.Namespace, network: nn.Module) -> list[str] | None:
    """Names or name endings of the modules that the options adapt; None for those of `DiamondMap`.

    Raises:
        TrainingError: the network has no module of such a name.
    """
    if not given.lora_layers:
        return None
    endings = [ending.strip() for ending in given.lora_layers.split(",")]
    names = [name for name, _ in network.named_modules()]
    for ending in endings:
        if not any(name == ending or name.endswith(f".{ending}") for name in names):
            raise TrainingError(
                f"--lora_layers names {ending!r}, which no module of the {type(network).__name__} ends in"
            )
    return endings


def build_loss(given: argparse.Namespace) -> DistillationLoss | TrajectoryLoss:
    """The loss that the options name."""
    if given.loss == TRAJECTORIES:
        return TrajectoryLoss(given.regression_weight)
    return DistillationLoss(given.loss, diagonal_fraction(given), given.adaptive_weight_power)


def diagonal_fraction(given: argparse.Namespace) -> float:
    """The share of the rows that learn the velocity, in a loss that has such rows."""
    return 0.75 if given.diagonal_fraction is None else given.diagonal_fraction


def build_optimizer(given: argparse.Namespace, parameters: list[nn.Parameter]) -> Optimizer:
    """The optimiser that the options name."""
    options = {"lr": given.learning_rate, "betas": (given.adam_beta1, given.adam_beta2)}
    options["weight_decay"] = given.adam_weight_decay
    if given.optimizer == "prodigy":
        import prodigyopt

        return prodigyopt.Prodigy(parameters, eps=given.adam_epsilon, **options)
    if given.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, eps=given.adam_epsilon, **options)
    return torch.optim.AdamW(parameters, eps=given.adam_epsilon, **options)


def build_schedule(given: argparse.Namespace, optimizer: Optimizer) -> Any:
    """The learning rate over the updates."""
    return get_scheduler(
        given.lr_scheduler,
        optimizer,
        num_warmup_steps=DEFAULT_WARMUP_STEPS if given.lr_warmup_steps is None else given.lr_warmup_steps,
        num_training_steps=given.max_train_steps,
        num_cycles=given.lr_num_cycles,
        power=given.lr_power,
    )
