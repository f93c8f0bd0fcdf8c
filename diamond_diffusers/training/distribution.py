"""Sets up how a run is distributed and logged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import Accelerator, DistributedType
from accelerate.utils import AutocastKwargs, ProjectConfiguration, is_tensorboard_available, is_wandb_available

from .errors import TrainingError

if TYPE_CHECKING:
    from .losses.base import DistillationLoss
    from .options.records import LoggingOptions, Options


def check_trackers(options: LoggingOptions) -> None:
    """Checks that the packages of the trackers are installed.

    Raises:
        TrainingError: a package is not installed.
    """
    for name in options.trackers:
        # accelerate would leave it out.
        if not _TRACKERS_INSTALLED[name]():
            raise TrainingError(f"--report_to {name} needs the package {name}; install it, or take --report_to none")


_TRACKERS_INSTALLED = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def make_accelerator(options: Options) -> Accelerator:
    """The accelerator that distributes a run and logs it.

    Raises:
        TrainingError: the device cannot train in the precision that is asked for.
    """
    folder, precision = options.output.output_dir, options.machine.mixed_precision
    try:
        return Accelerator(
            gradient_accumulation_steps=options.updates.gradient_accumulation_steps,
            mixed_precision=precision,
            log_with=options.logging.trackers or None,
            project_config=ProjectConfiguration(str(folder), str(folder / options.logging.logging_dir)),
            # The base is in half precision itself; forward-mode differentiation of a UNet fails under autocast.
            kwargs_handlers=[AutocastKwargs(enabled=False)],
        )
    except ValueError as error:
        if precision is None or precision not in str(error):
            raise
        raise TrainingError(f"--mixed_precision {precision} cannot be used here ({error}); take another") from error


def start_trackers(accelerator: Accelerator, options: Options) -> None:
    """Starts the trackers, if there are any, and tells them the options but for the token."""
    if accelerator.log_with:
        told = {name: value for name, value in options.by_flag().items() if name != "hub_token"}
        settings = {name: value if isinstance(value, int | float) else str(value) for name, value in told.items()}
        accelerator.init_trackers(options.logging.tracker_project_name, settings)


def prepare_distribution(accelerator: Accelerator, options: Options, loss: DistillationLoss) -> None:
    """Refuses ways to distribute that cannot train a map, and sets the precision of FSDP and the batch of DeepSpeed.

    Raises:
        TrainingError: float16 has no scaler of gradients; a loss in forward mode is combined with a search for unused
            parameters; weights are sharded in a way that mixes trained and frozen ones; or a sharded model would have
            to draw samples, or is quantised.
    """
    kind, handler = accelerator.distributed_type, accelerator.ddp_handler
    if kind != DistributedType.DEEPSPEED and accelerator.mixed_precision == "fp16" and accelerator.scaler is None:
        raise TrainingError(
            f"--mixed_precision is fp16, which needs a scaler of gradients, and accelerate has none on the device "
            f"{accelerator.device.type}; take bf16 or no"
        )
    if loss.needs_forward_mode and handler is not None and handler.find_unused_parameters:
        raise TrainingError(
            f"find_unused_parameters has no forward-mode rule, which --loss {options.loss.name} needs; turn it off, "
            "since every trained parameter is used, or take --loss central_difference"
        )
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise TrainingError(
            "FSDP of version 1 joins trained and frozen weights of different precision; set fsdp_version: 2 in the "
            "configuration of accelerate"
        )
    if kind == DistributedType.FSDP and options.learns_from_samples and not options.preparation.keeps_rows:
        raise TrainingError(
            "a model sharded by FSDP cannot draw samples of the teacher; add --cache_trajectories or --cache_latents, "
            "which draws them before it is sharded, or take DDP"
        )
    if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED) and options.model.quantize is not None:
        raise TrainingError(
            f"--quantize is {options.model.quantize!r}, but {kind.value} was not made to work with quantised weights "
            "here; leave it out, or take DDP"
        )
    if kind == DistributedType.FSDP:
        # It would cast what is trained; the base is in half precision already.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    if kind == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            raise TrainingError("stage 3 of DeepSpeed's ZeRO splits weights that the map reads; choose stage 1 or 2")
        # It would read them from a data loader, and there is none.
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = options.updates.train_batch_size
        plugin.deepspeed_config["gradient_accumulation_steps"] = options.updates.gradient_accumulation_steps
