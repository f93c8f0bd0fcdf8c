"""Reads noise levels and first-order steps from stock schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DPMSolverSDEScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    SCMScheduler,
    TCDScheduler,
)
from torch import Tensor

from ..core.levels import Level, as_level
from ..transitions.ancestral import AncestralTransition
from ..transitions.base import Transition
from ..transitions.ode import ODETransition
from ..transitions.renoise import RenoiseTransition
from ..transitions.stock import StockTransition
from ..transitions.trajectory import TrajectoryTransition

# Stands for pure noise (abar = 0, zero terminal SNR) where levels are interpolated; 1 / sqrt(2^-24), as in diffusers.
LARGEST_LEVEL = 4096.0

_FLOW = (
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
_CONSISTENCY = (FlowMatchLCMScheduler, LCMScheduler, SCMScheduler)
_DDPM = (DDPMScheduler, DDPMParallelScheduler)
_OTHER_VARIANCES = ("fixed_large", "fixed_large_log", "learned", "learned_range")
_ANCESTRAL = (DPMSolverSDEScheduler, EulerAncestralDiscreteScheduler, KDPM2AncestralDiscreteScheduler)
_IMPLICIT = (DDIMScheduler, DDIMParallelScheduler)


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler's sigmas are times of rectified flow, not noise-to-signal ratios."""
    config = scheduler.config
    return (
        isinstance(scheduler, _FLOW)
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def check_discrete_time(scheduler: Any) -> None:
    """Raises a `ValueError` where the scheduler's levels are no training steps of a variance-preserving model."""
    name, config = type(scheduler).__name__, scheduler.config
    if is_flow(scheduler) or not hasattr(scheduler, "alphas_cumprod") or config.get("timestep_type") == "continuous":
        raise ValueError(
            f"scheduler is a {name} whose noise levels are not those of discrete training steps; "
            "take DDIMScheduler.from_config(...) or another scheduler with betas and discrete timesteps"
        )


def check_unclipped(scheduler: Any) -> None:
    """Raises a `ValueError` if the scheduler clips its predictions, since aligned samples cannot be clipped."""
    if clipping(scheduler) is None:
        return
    name = type(scheduler).__name__
    option = "thresholding" if scheduler.config.get("thresholding") else "clip_sample"
    raise ValueError(
        f"{option} is on in the {name}, which clips predicted latents and makes their gradients vanish; take "
        f"{name}.from_config(scheduler.config, {option}=False), or alignment='none'"
    )


def training_levels(scheduler: Any) -> Tensor:
    """Noise-to-signal ratio of each training step of a discrete-time model, rising, float64."""
    abar = scheduler.alphas_cumprod.cpu().double()
    return torch.sqrt((1 - abar) / abar).clamp(max=LARGEST_LEVEL)


def trained_range(scheduler: Any) -> tuple[float, float]:
    """The lowest and the highest level that a discrete-time model knows; infinity with zero terminal SNR."""
    table = training_levels(scheduler)
    return table[0].item(), float("inf") if table[-1] >= LARGEST_LEVEL else table[-1].item()


def interpolate_levels(timesteps: Tensor, table: Tensor) -> Tensor:
    """Noise-to-signal ratios at fractional training steps: `log kappa` is linear between the steps of the table."""
    position = timesteps.cpu().double().clamp(0, len(table) - 1)
    below = position.floor().long().clamp(max=len(table) - 2)
    return torch.exp(torch.lerp(table[below].log(), table[below + 1].log(), position - below))


def stock_levels(scheduler: Any) -> list[float]:
    """The falling noise-to-signal ratios of a scheduler whose timesteps are set, the final one included.

    Higher-order schedulers visit a level several times; here each level comes once. Steps lead to the level of the next
    timestep. `DDIMScheduler` itself leads to another level if timesteps are spaced by `linspace`, or by `trailing` with
    a number that does not divide that of the training steps.
    """
    if is_flow(scheduler):
        sigma = scheduler.sigmas.cpu().double()
        levels = sigma / (1 - sigma)
    elif hasattr(scheduler, "sigmas"):
        levels = scheduler.sigmas.cpu().double()
    else:
        table = training_levels(scheduler)
        levels = interpolate_levels(scheduler.timesteps, table)
        levels[scheduler.timesteps.cpu() == len(table) - 1] = trained_range(scheduler)[1]
        levels = torch.cat([levels, _final_level(scheduler)])
    falling = [float("inf")]
    for level in levels.tolist():
        if level < falling[-1] or len(falling) == 1:
            falling.append(level)
    return falling[1:]


def level_interval(levels: Sequence[float], steps: Sequence[int]) -> tuple[float, float]:
    """The interval of levels `low < kappa <= high` from which consecutive steps of a run start; empty without steps.

    It turns a stock pipeline's rule for steps by index into a rule for noise levels. A rule for the first step also
    holds at higher levels.

    Args:
        levels: noise levels of the run, the final one included.
        steps: consecutive indices of steps.
    """
    if not steps:
        return float("inf"), float("inf")
    return levels[steps[-1] + 1], levels[steps[0]] if steps[0] > 0 else float("inf")


def within(noise_to_signal: Level, interval: tuple[float, float]) -> Tensor:
    """Whether levels lie in an interval from `level_interval`."""
    low, high = interval
    level = as_level(noise_to_signal)
    return (low < level) & (level <= high)


def _final_level(scheduler: Any) -> Tensor:
    """The final level of a scheduler without sigmas, which is not zero for Stable Diffusion's DDIM."""
    if isinstance(scheduler, TCDScheduler):
        return training_levels(scheduler)[:1]
    if isinstance(scheduler, _CONSISTENCY) or not hasattr(scheduler, "final_alpha_cumprod"):
        return torch.zeros(1, dtype=torch.float64)
    abar = torch.as_tensor(scheduler.final_alpha_cumprod).cpu().double().reshape(1)
    return torch.sqrt((1 - abar) / abar)


def is_variance_exploding(scheduler: Any) -> bool:
    """Whether the stock latents are `z + kappa eps` (Euler, Heun, LMS), not the variance-preserving ones."""
    # Only schedulers of that form compute the initial scale from their levels.
    return not is_flow(scheduler) and isinstance(getattr(type(scheduler), "init_noise_sigma", None), property)


def renoises(scheduler: Any) -> bool:
    """Whether the scheduler takes the predicted sample as clean and noises it afresh."""
    return isinstance(scheduler, _CONSISTENCY) or bool(scheduler.config.get("stochastic_sampling"))


def samples_few_steps(scheduler: Any) -> bool:
    """Whether the scheduler samples as few-step models are sampled."""
    return renoises(scheduler) or isinstance(scheduler, TCDScheduler)


def stock_transition(scheduler: Any, eta: float = 0.0) -> Transition:
    """The first-order step of a scheduler; for those of higher order, the step that they refine.

    Args:
        eta: option of `DDIMScheduler` and `TCDScheduler`; other schedulers ignore it, as their pipelines do.

    Raises:
        ValueError: a DDPM scheduler adds noise of another variance than the posterior's.
    """
    if isinstance(transition := getattr(scheduler, "transition", None), Transition):
        # The GLASS schedulers of this package.
        return transition
    transition, draws_above = _step_and_draws(scheduler, eta)
    clip = clipping(scheduler)
    if draws_above is None and clip is None:
        return transition
    return StockTransition(transition, draws_above, clip, clip is not None and isinstance(scheduler, _IMPLICIT))


def _step_and_draws(scheduler: Any, eta: float) -> tuple[Transition, float | None]:
    """The step of a scheduler that clips nothing, and `draws_above` of `StockTransition`."""
    if isinstance(scheduler, LCMScheduler):
        return RenoiseTransition(), None
    if renoises(scheduler):
        return RenoiseTransition(), 0.0
    if isinstance(scheduler, _DDPM):
        _check_variance(scheduler)
        # All but the training step 0.
        return AncestralTransition(), trained_range(scheduler)[0] * (1 + 1e-9)
    if isinstance(scheduler, _ANCESTRAL) or str(scheduler.config.get("algorithm_type")).startswith("sde-"):
        return AncestralTransition(), 0.0
    if isinstance(scheduler, TCDScheduler) and eta != 0:
        return TrajectoryTransition(eta, table=training_levels(scheduler)), None
    return (AncestralTransition(eta), 0.0) if isinstance(scheduler, _IMPLICIT) and eta != 0 else (ODETransition(), None)


def _check_variance(scheduler: Any) -> None:
    variance = scheduler.config.get("variance_type")
    if variance in _OTHER_VARIANCES:
        name = type(scheduler).__name__
        raise ValueError(
            f"variance_type is {variance!r} in the {name}, whose steps have more noise than those here; take "
            f"{name}.from_config(scheduler.config, variance_type='fixed_small')"
        )


def clipping(scheduler: Any) -> Callable[[Tensor], Tensor] | None:
    """The scheduler's clipping or thresholding of predicted clean samples `[N, ...]`; None if it does neither."""
    config = scheduler.config
    # TCD declares both, and does neither.
    if isinstance(scheduler, TCDScheduler):
        return None
    if config.get("thresholding"):
        return scheduler._threshold_sample
    if config.get("clip_sample"):
        limit = config.get("clip_sample_range", 1.0)
        # Not a local function, which could not be pickled with the output of a call.
        return partial(torch.clamp, min=-limit, max=limit)
    return None
