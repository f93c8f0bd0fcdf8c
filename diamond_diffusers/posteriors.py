"""Posterior samplers: look-ahead samples of the clean `z` given a noisy observation of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .counts import check_counts
from .flow_map import check_is_map, check_map_steps, flow_to_data
from .glass import check_inner_options, sample_posterior
from .levels import Level
from .network import Capabilities, Network, UsesNetwork


@dataclass(frozen=True)
class PosteriorSamples:
    """`K` weighted samples of `p(z | x)` for each of `N` observations.

    Attributes:
        samples: `[N, K, ...]`.
        log_weights: `[N, K]`, up to a constant for each observation, differentiable in it; zero where the samples are
            equally weighted.
    """

    samples: Tensor
    log_weights: Tensor


class PosteriorSampler(UsesNetwork, ABC):
    """Draws look-ahead samples.

    Attributes:
        num_samples: number K of samples of one observation.
        is_weighted: whether they differ in weight, so that their effective sample size says something.
        draws_noise: whether the samples depend on `noise`; where not, none is drawn, and it is zero.
        uses_prediction: whether it needs `predicted` of an ordinary model.
        differentiates_predicted: whether gradients of the samples go through `predicted`.
        has_gradient_terms: whether it tells the terms of the value's gradient apart, as `WeightedPosterior` does.
    """

    num_samples: int
    is_weighted: bool = False
    draws_noise: bool = True
    uses_prediction: bool = True
    differentiates_predicted: bool = True
    has_gradient_terms: bool = False

    def needs_prediction(self, network: Network) -> bool:
        """Whether it needs `predicted` of this network, which is None where nothing else needs it either."""
        return self.uses_prediction

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

    draws_noise = False

    def __post_init__(self) -> None:
        if self.num_samples != 1:
            raise ValueError(f"num_samples is {self.num_samples}; the denoiser point is a single sample, leave it at 1")

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor, noise: Tensor
    ) -> PosteriorSamples:
        return _equally_weighted(predicted, 1)


@dataclass(frozen=True)
class FlowMapPoint(PosteriorSampler):
    """The end of the flow map as the only sample (FMTT, arXiv 2511.22688): a typical one, but not a random one.

    Free where the model is a few-step map and `num_steps` is 1, since plain sampling predicts that end; else it costs
    `num_steps` evaluations of the map, or `num_steps - 1` of the ODE of an ordinary model, beyond what that predicts. A
    Diamond Map makes an ordinary model a flow map (`flow_map_of`), whose evaluations have their guidance baked in.

    Args:
        num_steps: evaluations from the observation down to clean data; at least 2 for an ordinary model.
    """

    num_steps: int = 1

    num_samples = 1
    draws_noise = False
    follows_flow_map = True

    def __post_init__(self) -> None:
        check_map_steps("num_steps", self.num_steps)

    def check(self, model: Capabilities) -> None:
        super().check(model)
        check_is_map("num_steps", self.num_steps, model)

    def predicts_end(self, network: Network) -> bool:
        """Whether it is what the model predicts anyway."""
        return self.num_steps == 1 and not network.predicts_mean

    def needs_prediction(self, network: Network) -> bool:
        return network.flow_map is None or self.predicts_end(network)

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        if network.flow_map is not None:
            is_end = self.predicts_end(network)
            end = predicted if is_end else flow_to_data(network, x, noise_to_signal, self.num_steps)
        else:
            denoised = network.mean(x, noise_to_signal, predicted)
            end = flow_to_data(network, x, noise_to_signal, self.num_steps, denoised)
        return _equally_weighted(end, 1)


@dataclass(frozen=True)
class GlassPosterior(PosteriorSampler):
    """Samples of the inner GLASS flow (arXiv 2509.25170), exact as `num_inner_steps` grows.

    One observation costs `num_samples * (num_inner_steps - 1)` evaluations beyond its denoised sample.

    Args:
        num_inner_steps: steps of the inner flow; at least 2 where `num_samples > 1`. With the default solver two have
            the spread of the posterior where there is little noise; where there is much, they are far from its law.
        num_samples: samples of each observation.
        solver: `euler`, `multistep` or `exponential`.
    """

    num_inner_steps: int = 4
    num_samples: int = 1
    solver: str = "exponential"

    needs_denoiser = True
    without_denoiser = "DenoiserPoint() or WeightedPosterior(weights='reward_softmax')"

    def __post_init__(self) -> None:
        check_inner_options(self.num_inner_steps, self.solver)
        check_counts(num_samples=self.num_samples)
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
