"""The Weighted Diamond Map: posterior samples from any flow map, by renoising, mapping and weighting.

For an observation `y` at the level `kappa`, with `kappa' > kappa` and `k = 1..K`::

    y'_k    = y + sqrt(kappa'^2 - kappa^2) eps_k
    z_k     = X(y'_k, kappa' -> 0)
    log w_k = log N(y; z_k, kappa^2 I) + log p_kappa'(y'_k) + |eps_k|^2 / 2

In the bounded coordinate of `levels` every term is finite at any level: with the noise
`eps_hat(x, kappa) = (x - alpha D) / sigma` that the denoiser leaves, `y' - y = sqrt(kappa'^2 - kappa^2) eps` has

    score(y', kappa') . (y' - y) = -eps_hat(x', kappa') . eps sqrt(1 - kappa^2 / kappa'^2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from ..core.checks import check_choice, check_counts
from ..core.flow_map import check_is_map, flow_to_data, steps_to_data
from ..core.levels import Denoiser, Level, as_level, predicted_noise, signal_and_noise
from ..core.model import Model
from ..core.network import Network
from ..core.tensors import expand, repeat_each, row_dot
from . import POSTERIORS
from .base import GradientTerms, PosteriorSampler, PosteriorSamples

DATA_VARIANCE = 0.25
"""Of the Gaussian data for which the default renoising draws from the exact posterior."""

QUADRATURES: dict[str, tuple[tuple[float, float], ...]] = {
    "trapezoid": ((0.0, 1 / 2), (1.0, 1 / 2)),
    "simpson": ((0.0, 1 / 6), (0.5, 4 / 6), (1.0, 1 / 6)),
}
"""Points on the line from `y` to `y'` and their weights."""


@dataclass(frozen=True)
class Renoised:
    """`N` observations and `K` consecutive renoised copies `x = centre + spread * noise` of each, without a graph.

    Attributes:
        observed, observed_level, observed_predicted: the observations `[N, ...]`, their level, and the loaded model's
            prediction there, if it is known.
        centre: `y` of the observations at the level of the copies, `[N, ...]` in the bounded coordinate.
        x: the copies `[N K, ...]`.
        noise: `eps`, `[N K, ...]`.
        spread: factor of the noise in `x`, one for all rows or one for each copy.
        level: noise level of `centre` and of the copies, one or `[N]`.
        denoised: `E[z | x]` of the copies, if it is known already.
    """

    observed: Tensor
    observed_level: Tensor
    observed_predicted: Tensor | None
    centre: Tensor
    x: Tensor
    noise: Tensor
    spread: Tensor
    level: Tensor
    denoised: Tensor | None

    @property
    def num_samples(self) -> int:
        return len(self.x) // len(self.observed)

    def noise_at(self, network: Network, position: float) -> Tensor:
        """`eps_hat` on the line from the centres, at position 0, to the copies, at 1: `[N K, ...]`."""
        if position == 0:
            # All copies of an observation start from one point.
            denoised = network.denoise(self.centre, self.level)
            return repeat_each(predicted_noise(self.centre, denoised, self.level), self.num_samples)
        x, level = self.x, repeat_each(self.level, self.num_samples)
        if position < 1:
            x = x - expand((1 - position) * self.spread, x) * self.noise
        denoised = self.denoised if position == 1 and self.denoised is not None else network.denoise(x, level)
        return predicted_noise(x, denoised, level)


LogDensity = Callable[[Network, Renoised, Sequence[tuple[float, float]]], tuple[Tensor, Tensor]]
"""`log p_kappa'(y'_k)` `[N K]` up to a constant for each observation, and `eps_hat` at the copies `[N K, ...]`."""


def line_integral(
    network: Network, renoised: Renoised, quadrature: Sequence[tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """The integral of the score at the one level `kappa'` from `y` to `y'_k`: consistent."""
    _, sigma = signal_and_noise(repeat_each(renoised.level, renoised.num_samples))
    parts = []
    for position, weight in quadrature:
        remaining = renoised.noise_at(network, position)
        parts.append(weight * row_dot(remaining, expand(renoised.spread / sigma, renoised.x) * renoised.noise))
    return -sum(parts[1:], parts[0]), remaining


def mixed_level_trapezoid(
    network: Network, renoised: Renoised, quadrature: Sequence[tuple[float, float]]
) -> tuple[Tensor, Tensor]:
    """The trapezoid between the scores at `kappa` and at `kappa'`, in the coordinate `y / (1 + kappa)`.

    That is `x_t` of rectified flow, `t = kappa / (1 + kappa)`, where the score is `-eps_hat / t`. The scores at the two
    ends belong to different laws, so that their sum is not a log-ratio, and depends on the coordinate.
    """
    count = renoised.num_samples
    denoised = network.mean(renoised.observed, renoised.observed_level, renoised.observed_predicted)
    start_noise = predicted_noise(renoised.observed, denoised, renoised.observed_level)
    end_noise = renoised.noise_at(network, 1.0)
    start_scale, start_time = _rectified_flow(renoised.observed_level)
    end_scale, end_time = _rectified_flow(repeat_each(renoised.level, count))
    start = repeat_each(expand(start_scale, renoised.x) * renoised.observed, count)
    scores = repeat_each(expand(1 / start_time, renoised.x) * start_noise, count)
    scores = scores + expand(1 / end_time, renoised.x) * end_noise
    return -row_dot(scores, expand(end_scale, renoised.x) * renoised.x - start) / 2, end_noise


LOG_DENSITIES: dict[str, LogDensity] = {"consistent": line_integral, "paper": mixed_level_trapezoid}
EVEN_WEIGHTS = ("reward_softmax", "equal")
WEIGHTS = (*LOG_DENSITIES, "likelihood", *EVEN_WEIGHTS)


def default_weights(model: Model | Network) -> str:
    """`consistent` where there is a posterior mean; `reward_softmax`, which is even, where there is none."""
    return "consistent" if model.has_denoiser else "reward_softmax"


@POSTERIORS.register("weighted")
@dataclass(frozen=True)
class WeightedPosterior(PosteriorSampler):
    """Weighted posterior samples from any flow map, without training: the Weighted Diamond Map.

    Use it with few-step models, or with a Diamond Map, which is a flow map of one step too (`flow_map_of`). An
    observation costs `K num_map_steps` evaluations beyond its predicted sample. The weights `consistent` add `K + 1`
    (and K more with Simpson's rule), and `paper` adds K and the posterior mean at the observation. For an ordinary
    model, the first step of its ODE serves its scores too, which saves K. The derivative of the value that these
    samples give is the pathwise gradient::

        sum_k softmax(log w + r)_k grad_y [r(z_k) + log w_k] - sum_k softmax(log w)_k grad_y log w_k

    with `grad_y log p_kappa'(y'_k) = score(y'_k, kappa')`, not the derivative of the quadrature. The last sum estimates
    `grad_y log p_kappa(y)` from the same samples, which varies less than an estimate by the denoiser.

    Weights collapse in high dimension: the trace records `look_ahead_effective_sample_size`.

    `Guide(scaling="norm")` separates three terms of that gradient, as the authors' code does: those of the rewards, of
    the likelihoods and of the scores. Each is a mean over the look-aheads in the proportions `log_proportions`. Its
    likelihoods and scores are computed from the clean sample to which the velocity at `y'_k` points (that of the model
    itself, whether it is a posterior mean or not). That costs K more backward passes, and K more evaluations where the
    look-aheads are not made of that clean sample: on a flow map of two times, and where particles follow a map.

    Args:
        num_samples: number K of look-aheads of each observation.
        snr_factor: `kappa'^2 / kappa^2`, above 1. None for `2 + 4 kappa^2`, with which Gaussian data of variance 1/4
            have equal weights, and which tends to fresh noise as `kappa` grows.
        weights: None for `consistent`, or on a few-step model without a posterior mean `reward_softmax`. `consistent`
            is exact as K grows, except for the quadrature, and needs the posterior mean. `paper` has
            the paper's mixed-level trapezoid, which is not consistent. The others are heuristics that need no posterior
            mean: `likelihood` is `log N(y; z_k, kappa^2 I)` alone; `reward_softmax` and `equal` weigh all look-aheads
            alike, so that the reward alone tilts. These two differ in the terms of the gradient, which they average by
            the softmax of the unscaled reward, or evenly.
        quadrature: rule of `consistent`: `trapezoid`, or `simpson` with a further evaluation at the middle.
        weight_temperature: divisor of the log-weights; 1 is exact, larger values even the weights out.
        num_map_steps: number of steps of the map from `kappa'` to clean data; at least 2 for an ordinary model without
            a Diamond Map, whose ODE is integrated. None for 1 where the model is a flow map or has a Diamond Map, else
            4.

    Example:
        >>> pipe("a red star", alignment=Guidance(WeightedPosterior(num_samples=2)), num_inference_steps=2)
    """

    num_samples: int = 4
    snr_factor: float | None = None
    weights: str | None = None
    quadrature: str = "trapezoid"
    weight_temperature: float = 1.0
    num_map_steps: int | None = None

    differentiates_predicted = False
    has_gradient_terms = True
    follows_flow_map = True
    without_denoiser = "weights='likelihood' or weights='reward_softmax'"

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples)
        if self.num_map_steps is not None:
            check_counts(num_map_steps=self.num_map_steps)
        if self.snr_factor is not None and not self.snr_factor > 1:
            raise ValueError(f"snr_factor is {self.snr_factor}; give a number above 1, or None for 2 + 4 kappa^2")
        if self.weights is None and (self.quadrature != "trapezoid" or self.weight_temperature != 1):
            # These are options of what is exact.
            object.__setattr__(self, "weights", "consistent")
        if self.weights is not None:
            check_choice("weights", self.weights, WEIGHTS)
        check_choice("quadrature", self.quadrature, QUADRATURES)
        if self.quadrature != "trapezoid" and self.weights != "consistent":
            raise ValueError(
                f"quadrature is {self.quadrature!r}, but weights={self.weights!r} does not integrate; "
                "take weights='consistent' or leave quadrature out"
            )
        if not 0 < self.weight_temperature < math.inf:
            raise ValueError(f"weight_temperature is {self.weight_temperature}; give a positive, finite number")
        if self.weight_temperature != 1 and not self.is_weighted:
            raise ValueError(
                f"weight_temperature is {self.weight_temperature}, but weights={self.weights!r} has no weights to "
                "even out; lower reward_scale instead"
            )

    def resolve(self, model: Model | Network) -> Self:
        return self if self.weights is not None else replace(self, weights=default_weights(model))

    # Other samplers declare these three by values of their class; here they follow from `weights`.
    @property
    def needs_denoiser(self) -> bool:  # type: ignore[override]
        return self.weights in LOG_DENSITIES

    @property
    def uses_prediction(self) -> bool:  # type: ignore[override]
        return self.weights == "paper"

    @property
    def is_weighted(self) -> bool:  # type: ignore[override]
        return self.weights not in EVEN_WEIGHTS

    def check(self, model: Model) -> None:
        super().check(model)
        check_is_map("num_map_steps", self.num_map_steps, model)

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        weights = self.weights or default_weights(network)
        kappa, count = as_level(noise_to_signal), len(noise) // len(x)
        level, keep, spread = self.renoising(kappa, network.max_noise_to_signal)
        spread, centre = repeat_each(spread, count), expand(keep, x) * x
        copies = repeat_each(centre, count) + expand(spread, x) * noise
        # The first step of an ordinary model's ODE is the posterior mean that its scores need.
        denoised = network.denoise(copies, repeat_each(level, count)) if not network.has_flow_map else None
        num_steps = steps_to_data(self.num_map_steps, network)
        z = flow_to_data(network, copies, repeat_each(level, count), num_steps, denoised)
        # At pure noise all weights are equal, and that of a single sample cancels.
        if weights in EVEN_WEIGHTS or count == 1 or torch.isinf(kappa).all():
            log_weights = torch.zeros(len(z), dtype=z.dtype, device=z.device)
        else:
            residual = predicted_noise(repeat_each(x, count), z, repeat_each(kappa, count))
            log_weights = -row_dot(residual, residual) / 2
            if weights in LOG_DENSITIES:
                renoised = Renoised(
                    x.detach(),
                    kappa.detach(),
                    None if predicted is None else predicted.detach(),
                    centre.detach(),
                    copies.detach(),
                    noise.detach(),
                    spread.detach(),
                    level.detach(),
                    None if denoised is None else denoised.detach(),
                )
                log_density = self._log_density(network, weights, renoised, copies)
                log_weights = log_weights + row_dot(noise, noise) / 2 + log_density
        log_weights = log_weights.unflatten(0, (-1, count)) / self.weight_temperature
        # Only differences matter, and these fit the dtype of the samples.
        log_weights = log_weights - log_weights.amax(1, keepdim=True).detach()
        is_predicted = network.maps_by_prediction and num_steps == 1
        predicted_at_copies = z if is_predicted else denoised if network.predicts_mean else None
        return PosteriorSamples(z.unflatten(0, (-1, count)), log_weights.to(z.dtype), predicted_at_copies)

    def gradient_terms(
        self,
        x: Tensor,
        noise_to_signal: Level,
        largest: float,
        noise: Tensor,
        aim: Denoiser,
        aimed: Tensor,
        aimed_at_copies: Tensor | None = None,
    ) -> GradientTerms:
        """The likelihoods and scores at the copies that `sample` makes of `x` with the same noise."""
        kappa, count = as_level(noise_to_signal), len(noise) // len(x)
        level, keep, spread = self.renoising(kappa, largest)
        levels = repeat_each(level, count)
        copies = repeat_each(expand(keep, x) * x, count) + expand(repeat_each(spread, count), x) * noise
        z = aim(copies, levels) if aimed_at_copies is None else aimed_at_copies
        residual = predicted_noise(repeat_each(x, count), z, repeat_each(kappa, count))
        log_likelihoods = -row_dot(residual, residual) / 2
        with torch.no_grad():
            (_, sigma), (_, new_sigma) = signal_and_noise(kappa), signal_and_noise(level)
            there = expand(repeat_each(-keep / new_sigma, count), x) * predicted_noise(copies, z, levels)
            here = expand(-1 / sigma, x) * predicted_noise(x, aimed, kappa)
            differences = there.unflatten(0, (-1, count)) - here.unsqueeze(1)
        return GradientTerms(log_likelihoods.unflatten(0, (-1, count)), differences)

    def log_proportions(self, log_weights: Tensor, rewards: Tensor, scales: Tensor) -> Tensor:
        """Those of the weights; of even weights the softmax of the unscaled reward, or equal ones."""
        if self.weights == "equal":
            return torch.zeros_like(rewards)
        if self.weights != "reward_softmax":
            return log_weights + rewards
        # Constraints alone are not scaled.
        return rewards / torch.where(scales == 0, 1, scales.abs())[:, None]

    @torch.no_grad()
    def _scored(self, network: Network, weights: str, renoised: Renoised) -> tuple[Tensor, Tensor]:
        """`log p_kappa'` at the copies, `[N K]`, and its gradient there."""
        log_density, remaining = LOG_DENSITIES[weights](network, renoised, QUADRATURES[self.quadrature])
        _, sigma = signal_and_noise(repeat_each(renoised.level, renoised.num_samples))
        return log_density, expand(-1 / sigma, remaining) * remaining

    def _log_density(self, network: Network, weights: str, renoised: Renoised, copies: Tensor) -> Tensor:
        """`log p_kappa'(y'_k)` `[N K]`, whose gradient in the copies is the score there."""
        log_density, score = self._scored(network, weights, renoised)
        return log_density + row_dot(copies - renoised.x, score)

    def renoising(self, kappa: Tensor, largest: float) -> tuple[Tensor, Tensor, Tensor]:
        """The level `kappa'`, and `keep` and `spread` in the bounded `x' = keep x + spread eps`.

        For data `N(0, v I)` and any `kappa'`, the `y'` whose map is a posterior sample is normal with the mean
        `sqrt(v (v + kappa'^2)) / (v + kappa^2) y` and the variance `kappa^2 (v + kappa'^2) / (v + kappa^2)`. That is
        plain renoising for `kappa'^2 = kappa^2 (2 + kappa^2 / v)`, and fresh noise at `kappa = inf`. This law is also
        used if a given `snr_factor` would exceed the largest level of the model: renoising to a level at or below
        that of the observation would draw K equal copies, and the weights are right for any normal `y'`.
        """
        variance, factor = DATA_VARIANCE, self.snr_factor
        wanted = kappa * torch.sqrt(as_level(2 + kappa**2 / variance if factor is None else factor))
        level = wanted.clamp(max=largest)
        (alpha, sigma), (new_alpha, new_sigma) = signal_and_noise(kappa), signal_and_noise(level)
        total, new_total = (variance * a**2 + s**2 for a, s in [(alpha, sigma), (new_alpha, new_sigma)])
        keep, spread = torch.sqrt(variance * new_total) * alpha / total, torch.sqrt(new_total / total) * sigma
        if factor is not None:
            plain = torch.isfinite(wanted) & (wanted <= largest)
            plain_keep = new_alpha / alpha
            keep = torch.where(plain, plain_keep, keep)
            spread = torch.where(plain, torch.sqrt((new_sigma**2 - (plain_keep * sigma) ** 2).clamp(min=0)), spread)
        return level, keep, spread


def _rectified_flow(kappa: Tensor) -> tuple[Tensor, Tensor]:
    """The factor from the bounded coordinate to `x_t` of rectified flow, and its time."""
    alpha, sigma = signal_and_noise(kappa)
    return 1 / (alpha + sigma), sigma / (alpha + sigma)
