"""Look-aheads and transitions of a Posterior Diamond Map: one evaluation each (arXiv 2602.05993)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .counts import check_counts
from .flow_map import check_map_steps
from .glass import EarlyStop, inner_times
from .levels import Level, as_level, working_dtype
from .network import Network
from .posteriors import PosteriorSampler, PosteriorSamples
from .transitions import InnerFlowTransition


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
    rows, level = x.repeat_interleave(count, 0), as_level(noise_to_signal)
    if level.ndim > 0:
        level = level.repeat_interleave(count)
    xbar = noise
    for s, r in pairwise(inner_times(num_map_steps, level, stop)):
        xbar = network.diamond_map(xbar, s, r, rows, level)
    return xbar


@dataclass(frozen=True)
class DiamondPosterior(PosteriorSampler):
    """Samples of `p(z | x)` by a Posterior Diamond Map, each from `num_map_steps` evaluations.

    A map has its guidance baked in, so an evaluation of it costs one of the network even where the base runs with
    classifier-free guidance.

    Args:
        num_samples: look-aheads K of each observation.
        num_map_steps: evaluations of each; 1 is what the map is distilled for.
    """

    num_samples: int = 4
    num_map_steps: int = 1

    needs_diamond_map = True
    uses_prediction = False
    differentiates_predicted = False

    def __post_init__(self) -> None:
        check_map_steps("num_map_steps", self.num_map_steps)
        check_counts(num_samples=self.num_samples)

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        samples = map_inner_flow(network, x, noise_to_signal, noise, self.num_map_steps).unflatten(
            0, (-1, self.num_samples)
        )
        return PosteriorSamples(samples, torch.zeros(samples.shape[:2], device=x.device, dtype=samples.dtype))


@dataclass(frozen=True)
class DiamondTransition(InnerFlowTransition):
    """Early-stopped Diamond Map: a stochastic transition of `num_map_steps` evaluations.

    Args:
        num_map_steps: evaluations of a step.
        correlation: `rho` in `[0, 1]` between the noises before and after; `"ddpm"` is `kappa_next / kappa`, for
            which the chain is Markov.
    """

    num_map_steps: int = 1
    correlation: float | str = "ddpm"

    needs_diamond_map = True
    uses_prediction = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_map_steps("num_map_steps", self.num_map_steps)

    def step(
        self,
        network: Network,
        x: Tensor,
        noise_to_signal: float,
        next_noise_to_signal: float,
        predicted: Tensor | None,
        noise: Tensor,
    ) -> Tensor:
        correlation = self.correlation_at(noise_to_signal, next_noise_to_signal)
        early_stop = EarlyStop(noise_to_signal, next_noise_to_signal, correlation)
        if early_stop.stays:
            return x.to(working_dtype(x))
        xbar = map_inner_flow(network, x, noise_to_signal, noise, self.num_map_steps, early_stop.stop)
        return early_stop.observation(x, xbar)
