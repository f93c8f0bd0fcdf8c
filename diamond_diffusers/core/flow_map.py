"""From an observation down its path of the probability-flow ODE to clean data."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .glass import inner_times
from .levels import Denoiser, Level, RectifiedFlowPath, as_level, ode_step, signal_and_noise
from .model import Model
from .network import FlowMap, InnerFlowMap, Network
from .tensors import expand, repeat_each, where_rows

ODE_STEPS = 4
"""From an observation to clean data along the ODE of a model that is no flow map, where nothing else is asked for."""
_GRID_POWER = 1.5


def flow_to_data(
    network: Network, x: Tensor, noise_to_signal: Level, num_steps: int, denoised: Tensor | None = None
) -> Tensor:
    """The clean ends `[N, ...]` of the flow map, in `num_steps` evaluations of each row; differentiable in `x`.

    A flow map is composed with itself; an ordinary model is integrated with `integrate_ode`.

    Args:
        network: the model.
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their level.
        num_steps: at least 1.
        denoised: `E[z | x]` where an ordinary model has been asked for it already.
    """
    if not network.has_flow_map:
        return integrate_ode(network.denoise, x, noise_to_signal, num_steps, denoised)
    for level, next_level in pairwise(ode_levels(noise_to_signal, num_steps)):
        x = network.flow_map(x, level, next_level)
    return x


def flow_map_of(diamond_map: InnerFlowMap) -> FlowMap:
    """The flow map that a Posterior Diamond Map contains.

    Given pure noise, which says nothing of `z`, the inner flow is the model's own, and its path `(1 - s) z + s eps`
    that of rectified flow: `X_{s -> r}(.; noise)` leads from the level `s / (1 - s)` to `r / (1 - r)`.
    """
    path = RectifiedFlowPath()

    def flow_map(x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
        s, r = path.time(noise_to_signal), path.time(next_noise_to_signal)
        # What stands for the pure noise has no weight; this has the size of noise and is no draw.
        mapped = diamond_map(path.from_bounded(x, s), s, r, x, math.inf)
        # Scales of the path do not cancel to the bit.
        return where_rows(s == r, x, path.to_bounded(mapped, r))

    return flow_map


def map_inner_flow(
    network: Network, x: Tensor, noise_to_signal: Level, noise: Tensor, num_map_steps: int, stop: float = 0.0
) -> Tensor:
    """The inner flow from noise at `s = 1` down to `stop` by composing a Diamond Map with itself.

    Args:
        network: a model with a Diamond Map.
        x: observations `[N, ...]` in the bounded coordinate.
        noise_to_signal: their level.
        noise: standard normal `[N K, ...]`, K consecutive rows for each observation.
        num_map_steps: evaluations of each row.
        stop: last inner time, in `[0, 1)`.

    Returns:
        `xbar` at `stop`, `[N K, ...]`, differentiable in `x`.
    """
    count = len(noise) // len(x)
    rows, level, xbar = repeat_each(x, count), repeat_each(as_level(noise_to_signal), count), noise
    for s, r in pairwise(inner_times(num_map_steps, level, stop)):
        xbar = network.diamond_map(xbar, s, r, rows, level)
    return xbar


def integrate_ode(
    denoise: Denoiser, x: Tensor, noise_to_signal: Level, num_steps: int, denoised: Tensor | None = None
) -> Tensor:
    """The clean ends of the probability-flow ODE of a denoiser.

    `d(y / kappa) / d kappa = -D / kappa^2` is integrated exactly for a `D` that is linear in `theta = atan kappa`
    through the last two evaluations, and constant on the first step. On a mixture this is closer to the end than Euler
    steps and DPM-Solver++(2M) are for 2 to 8 steps. Arguments as of `flow_to_data`.
    """
    before: tuple[Tensor, Tensor] | None = None
    for level, next_level in pairwise(ode_levels(noise_to_signal, num_steps)):
        current = denoise(x, level) if denoised is None or before is not None else denoised
        effective, angle = current, torch.atan(level)
        if before is not None:
            previous, angle_before = before
            ahead = (_mean_angle(level, next_level) - angle) / (angle - angle_before)
            effective = current + expand(ahead, x) * (current - previous)
        x = ode_step(x, effective, level, next_level)
        before = current, angle
    return x


def ode_levels(noise_to_signal: Level, num_steps: int) -> list[Tensor]:
    """`num_steps + 1` levels down to 0, where `atan kappa` falls as `(1 - i / num_steps)^1.5`.

    The angle is finite at pure noise; steps shorten towards the data, where paths bend.
    """
    first = as_level(noise_to_signal)
    shares = [(1 - i / num_steps) ** _GRID_POWER for i in range(1, num_steps)]
    return [first, *(torch.tan(share * torch.atan(first)) for share in shares), torch.zeros_like(first)]


def _mean_angle(level: Tensor, next_level: Tensor) -> Tensor:
    """Mean of `theta` over a step under the weight `d kappa / kappa^2`; 0 for a step to 0."""
    (_, sigma), (_, next_sigma) = signal_and_noise(level), signal_and_noise(next_level)
    moment = torch.atan(next_level) / next_level - torch.atan(level) / level + torch.log(sigma / next_sigma)
    return torch.where(next_level > 0, moment / (1 / next_level - 1 / level), 0.0)


def has_map_to_data(model: Model) -> bool:
    """Whether a flow map can be evaluated: the model's own, or that of its Diamond Map."""
    return model.has_flow_map or model.has_diamond_map


def steps_to_data(num_steps: int | None, network: Network) -> int:
    """Steps along the path from an observation to clean data: those asked for, else what the network needs.

    A flow map takes one, and the ODE of an ordinary model `ODE_STEPS`.
    """
    if num_steps is not None:
        return num_steps
    return 1 if network.has_flow_map else ODE_STEPS


def check_is_map(argument: str, num_steps: int | None, model: Model) -> None:
    """Raises a `ValueError` for a single step along the path of a model that has no flow map.

    Args:
        argument: by which the caller knows the number of steps.
        num_steps: along the path from an observation to clean data; None for as many as the model needs.
        model: to be followed.
    """
    if num_steps == 1 and not has_map_to_data(model):
        raise ValueError(
            f"{argument} is 1, but this {model.name} model is not a few-step flow map, and one step of its ODE ends "
            f"at the posterior mean; give {argument}={ODE_STEPS}, or use DenoiserPoint()"
        )
