"""Posterior samplers: look-ahead samples of the clean `z` given a noisy observation of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .glass import check_inner_options, sample_posterior
from .levels import Level
from .network import Network, UsesNetwork


@dataclass(frozen=True)
class PosteriorSamples:
    """`K` weighted samples of `p(z | x)` for each of `N` observations.

    Attributes:
        samples: `[N, K, ...]`.
        log_weights: `[N, K]`, up to a constant; zero where the samples are exact draws.
    """

    samples: Tensor
    log_weights: Tensor


class PosteriorSampler(UsesNetwork, ABC):
    """Draws look-ahead samples. `num_samples` is the number K of samples of one observation."""

    num_samples: int

    @abstractmethod
    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor, noise: Tensor
    ) -> PosteriorSamples:
        """Samples `p(z | x)`, differentiably in `x`.

        Args:
            network: the model; called with `[N, ...]` rows, or with `[N K, ...]`, K consecutive ones of each
                observation.
            x: observations `[N, ...]` in the bounded coordinate.
            noise_to_signal: their level.
            predicted: `network.predict(x, noise_to_signal)`, which every caller has at hand.
            noise: standard normal `[N K, ...]`.
        """


@dataclass(frozen=True)
class DenoiserPoint(PosteriorSampler):
    """The predicted clean sample as the only one: free, and inconsistent (DPS, arXiv 2209.14687; FK steering).

    That is the posterior mean, and of a few-step model the end of its flow map (arXiv 2511.22688).
    """

    num_samples: int = 1

    def __post_init__(self) -> None:
        if self.num_samples != 1:
            raise ValueError(f"num_samples is {self.num_samples}; the denoiser point is a single sample, leave it at 1")

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor, noise: Tensor
    ) -> PosteriorSamples:
        return _equally_weighted(predicted, 1)


@dataclass(frozen=True)
class GlassPosterior(PosteriorSampler):
    """Samples of the inner GLASS flow (arXiv 2509.25170), exact as `num_inner_steps` grows.

    One observation costs `num_samples * (num_inner_steps - 1)` evaluations beyond its denoised sample.

    Args:
        num_inner_steps: steps of the inner flow; at least 2 where `num_samples > 1`.
        num_samples: samples of each observation.
        solver: `euler`, `multistep` or `exponential`.
    """

    num_inner_steps: int = 2
    num_samples: int = 1
    solver: str = "exponential"

    needs_denoiser = True
    without_denoiser = "DenoiserPoint() or WeightedPosterior(weights='reward_softmax')"

    def __post_init__(self) -> None:
        check_inner_options(self.num_inner_steps, self.solver)
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}; it must be at least 1")
        if self.num_inner_steps == 1 and self.num_samples > 1:
            raise ValueError(
                f"num_inner_steps is 1, which makes all {self.num_samples} samples the denoiser point; "
                "take num_inner_steps >= 2 or num_samples=1"
            )

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor, noise: Tensor
    ) -> PosteriorSamples:
        samples = sample_posterior(
            network.denoise,
            x,
            noise_to_signal,
            noise,
            num_inner_steps=self.num_inner_steps,
            solver=self.solver,
            denoised=network.mean(x, noise_to_signal, predicted),
        )
        return _equally_weighted(samples, self.num_samples)


def _equally_weighted(rows: Tensor, num_samples: int) -> PosteriorSamples:
    samples = rows.unflatten(0, (-1, num_samples))
    return PosteriorSamples(samples, torch.zeros(samples.shape[:2], device=rows.device, dtype=rows.dtype))
