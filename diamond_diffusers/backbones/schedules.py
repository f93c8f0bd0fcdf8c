"""What stock schedulers say of noise levels and of how their pipelines sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..transitions import AncestralTransition, ODETransition, RenoiseTransition, Transition

# abar = 0 (zero terminal SNR) is evaluated at this level by the schedulers of diffusers, 1 / sqrt(2^-24).
LARGEST_LEVEL = 4096.0

_RENOISING = ("LCMScheduler", "SCMScheduler")
_ANCESTRAL = ("EulerAncestralDiscreteScheduler", "DDPMScheduler")


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler's sigmas are times of rectified flow, not noise-to-signal ratios."""
    config = scheduler.config
    return (
        "FlowMatch" in type(scheduler).__name__
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def training_levels(scheduler: Any) -> Tensor:
    """Noise-to-signal ratio of each training step of a discrete-time model, rising, float64."""
    abar = scheduler.alphas_cumprod.double().cpu()
    return torch.sqrt((1 - abar) / abar).clamp(max=LARGEST_LEVEL)


def interpolate_levels(timesteps: Tensor, table: Tensor) -> Tensor:
    """Noise-to-signal ratios at fractional training steps: `log kappa` is linear between the steps of the table."""
    position = timesteps.double().cpu().clamp(0, len(table) - 1)
    below = position.floor().long().clamp(max=len(table) - 2)
    return torch.exp(torch.lerp(table[below].log(), table[below + 1].log(), position - below))


def interpolate_timesteps(noise_to_signal: Tensor, table: Tensor) -> Tensor:
    """The inverse of `interpolate_levels`; levels outside the table give its ends."""
    level = noise_to_signal.double().cpu().clamp(table[0], table[-1])
    above = torch.searchsorted(table, level.contiguous()).clamp(1, len(table) - 1)
    low, high = table[above - 1].log(), table[above].log()
    return above - 1 + (level.log() - low) / (high - low)


def stock_levels(scheduler: Any) -> list[float]:
    """The falling noise-to-signal ratios of a scheduler whose timesteps are set, the final one included.

    Higher-order schedulers visit a level several times; here it comes once.
    """
    if is_flow(scheduler):
        sigma = scheduler.sigmas.double().cpu()
        levels = sigma / (1 - sigma)
    elif hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas.double().cpu()
    else:
        table = training_levels(scheduler)
        levels = torch.cat([interpolate_levels(scheduler.timesteps, table), _final_level(scheduler)])
    falling = [float("inf")]
    for level in levels.tolist():
        if level < falling[-1] or len(falling) == 1:
            falling.append(level)
    return falling[1:]


def _final_level(scheduler: Any) -> Tensor:
    """Where the last step of a scheduler without sigmas ends: not at zero for Stable Diffusion's DDIM."""
    if type(scheduler).__name__ in _RENOISING or not hasattr(scheduler, "final_alpha_cumprod"):
        return torch.zeros(1, dtype=torch.float64)
    abar = torch.as_tensor(scheduler.final_alpha_cumprod).double().cpu().reshape(1)
    return torch.sqrt((1 - abar) / abar)


def is_variance_exploding(scheduler: Any) -> bool:
    """Whether the stock latents are `z + kappa eps` (Euler, Heun, LMS), not the variance-preserving ones."""
    # Only schedulers of that form compute the initial scale from their levels.
    return not is_flow(scheduler) and isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)


def renoises(scheduler: Any) -> bool:
    """Whether the scheduler samples few-step models by predicting the clean sample and noising it afresh."""
    return type(scheduler).__name__ in _RENOISING


def stock_transition(scheduler: Any, eta: float = 0.0) -> Transition:
    """The first-order step of a scheduler; for those of higher order, the step that they refine.

    Args:
        eta: of `DDIMScheduler`; other schedulers ignore it, as their pipelines do.
    """
    name = type(scheduler).__name__
    if renoises(scheduler) or scheduler.config.get("stochastic_sampling"):
        return RenoiseTransition()
    if name in _ANCESTRAL:
        return AncestralTransition()
    return AncestralTransition(eta) if name == "DDIMScheduler" and eta > 0 else ODETransition()
