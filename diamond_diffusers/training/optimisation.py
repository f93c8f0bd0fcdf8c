"""The optimiser and the learning rate."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_bnb_available
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim import Optimizer

from .errors import TrainingError

if TYPE_CHECKING:
    from .options.records import OptimizerOptions, ScheduleOptions


def check_optimizer(options: OptimizerOptions) -> None:
    """Checks that the package of the optimiser is installed.

    Raises:
        TrainingError: the package is not installed.
    """
    if options.optimizer == "prodigy" and importlib.util.find_spec("prodigyopt") is None:
        raise TrainingError("--optimizer prodigy needs the package prodigyopt; install it with pip install prodigyopt")
    if options.use_8bit_adam and not is_bnb_available():
        raise TrainingError("--use_8bit_adam needs the package bitsandbytes; install it with pip install bitsandbytes")


def build_optimizer(options: OptimizerOptions, parameters: list[nn.Parameter], is_scaled: bool = False) -> Optimizer:
    """The optimiser that the options name, with one kernel for all weights where their device has it.

    Args:
        is_scaled: whether a scaler of gradients is used; that kernel would not tell which updates it skips.
    """
    shared: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": (options.adam_beta1, options.adam_beta2),
        "weight_decay": options.adam_weight_decay,
        "eps": options.adam_epsilon,
    }
    if options.optimizer == "prodigy":
        import prodigyopt

        return prodigyopt.Prodigy(parameters, **shared)
    if options.use_8bit_adam:
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **shared)
    is_fused = not is_scaled and has_fused_adamw(parameters[0].device)
    return torch.optim.AdamW(parameters, fused=is_fused or None, **shared)


def has_fused_adamw(device: torch.device) -> bool:
    """Whether torch has one kernel of AdamW for all weights on a device, which it only says when it is used."""
    weight = nn.Parameter(torch.zeros(1, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], fused=True).step()
    except RuntimeError:
        return False
    return True


def build_schedule(options: ScheduleOptions, optimizer: Optimizer, num_updates: int) -> Any:
    """The learning rate over the updates of a run."""
    return get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=num_updates,
        num_cycles=options.lr_num_cycles,
        power=options.lr_power,
    )
