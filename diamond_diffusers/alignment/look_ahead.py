"""What a method learns of its particles at one level: predicted samples, values, and the shift towards the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from ..core.attention import differentiable_attention
from ..core.deferred import require
from ..core.levels import Level, signal_and_noise
from ..core.network import Network
from ..core.tensors import expand, finite_rows, sent, working_dtype
from ..core.values import (
    hybrid_shift,
    isotropic_coefficient,
    isotropic_gradient,
    pathwise_coefficient,
    pathwise_gradient,
    tilted_log_weights,
    tilted_mean_shift,
    value,
)
from ..posteriors.base import PosteriorSampler, PosteriorSamples, check_samples
from .law import Law, LawAtRows
from .random_source import RandomSource
from .smc_parts.resampling import effective_sample_size

GRADIENTS = ("pathwise", "isotropic", "tilted_mean", "hybrid")
NETWORK_GRADIENTS = ("pathwise", "hybrid")
"""Those that differentiate the network."""
REWARD_GRADIENTS = (*NETWORK_GRADIENTS, "isotropic")
"""Those that differentiate the reward."""
COMPARING_GRADIENTS = ("tilted_mean", "hybrid")
"""Those that compare look-aheads, of which they need at least two."""

Aim = Callable[[Network, Tensor, Level], Tensor]
"""The clean sample to which the velocity of a step at observations `[N, ...]` points."""


@dataclass(frozen=True)
class LookAhead:
    """Estimates at the particles of one level.

    Attributes:
        predicted: what the model as loaded predicts at `x`, `[N, ...]`, or to what else the step aims; None at the last
            level, and where neither look-aheads nor the transition use it.
        values: `V(x)`, `[N]`.
        terms: summands of the value's gradient, `[N, T, ...]`, where it was asked for: one, or those of the rewards, of
            the likelihoods and of the scores.
        coefficient: what turns their sum into the shift of the denoised samples, `[N]`.
        drift: root-mean-square of `kappa / (1 + kappa)` times the velocity of rectified flow, `[N]`, where it was asked
            for; the shift of the denoised samples that would double or cancel that velocity has this size.
        effective_sample_size: of each particle's look-aheads, `[N]`, where they differ in weight.
        samples: the look-aheads `[N, K, ...]`, where they were asked for.
        rewards: their scaled rewards `[N, K]`, with `samples`.
        ranks: their final values `[N, K]`, by which clean images are compared, with `samples`.
        tilted_log_weights: their unnormalised weights `[N, K]` in the tilted posterior, with `samples`.
    """

    predicted: Tensor | None
    values: Tensor
    terms: Tensor | None = None
    coefficient: Tensor | None = None
    drift: Tensor | None = None
    effective_sample_size: Tensor | None = None
    samples: Tensor | None = None
    rewards: Tensor | None = None
    ranks: Tensor | None = None
    tilted_log_weights: Tensor | None = None

    @property
    def shift(self) -> Tensor | None:
        """`kappa^2 grad_y V`, `[N, ...]`, where the gradient was asked for."""
        if self.terms is None:
            return None
        assert self.coefficient is not None, "it comes with the terms"
        total = self.terms.sum(1)
        return expand(self.coefficient, total) * total

    def rows(self, index: Tensor) -> LookAhead:
        """The estimates of the particles `index`."""
        made = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: estimate[index] for name, estimate in made.items() if estimate is not None})

    @classmethod
    def joined(cls, parts: Sequence[LookAhead]) -> LookAhead:
        """The estimates of consecutive parts of a cloud."""
        made = [field.name for field in fields(cls) if getattr(parts[0], field.name) is not None]
        return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in made})

    def figures(self, num_particles: int) -> dict[str, Tensor]:
        """What the trace records of `num_particles` particles an image, each `[B]`."""
        values = self.values.unflatten(0, (-1, num_particles))
        figures = {"mean_value": values.mean(1), "best_value": values.amax(1)}
        if self.effective_sample_size is not None:
            sizes = self.effective_sample_size.unflatten(0, (-1, num_particles))
            figures["look_ahead_effective_sample_size"] = sizes.mean(1)
        return figures


def look_ahead(
    law: Law,
    posterior: PosteriorSampler,
    x: Tensor,
    noise_to_signal: float,
    random: RandomSource,
    gradient: str | None = None,
    *,
    with_prediction: bool = True,
    with_terms: bool = False,
    with_drift: bool = False,
    with_samples: bool = False,
    with_values: bool = True,
    aim: Aim | None = None,
) -> LookAhead:
    """Draws look-aheads of particles `[N, ...]` (equally many of each image) and estimates their values.

    Args:
        gradient: None, `pathwise` (differentiates network, decoder and reward), `isotropic` (decoder and reward only),
            `tilted_mean` (needs at least two look-aheads and no derivative) or `hybrid` (the first and the third).
        with_prediction: whether the predicted sample is needed for more than the look-aheads.
        with_terms: whether the pathwise gradient is wanted in terms where the posterior has them: of the rewards, of
            the likelihoods and of the scores.
        with_drift: whether the size of the velocity is wanted, with a gradient.
        with_samples: whether the look-aheads themselves are wanted.
        with_values: whether they are decoded and scored; else their rewards are taken as 0, and there is no gradient.
        aim: of the step to be guided; None where that is what the model predicts.
    """
    num_samples, rows = posterior.num_samples, law.rows(x)
    if posterior.draws_noise:
        noise = random.normal(num_samples * len(x) // law.num_images, x.shape[1:])
    else:
        noise = x.new_zeros(num_samples * len(x), *x.shape[1:])

    def estimate(rows: LawAtRows, x: Tensor, noise: Tensor) -> LookAhead:
        particles = _Particles(rows, posterior, x, noise_to_signal, noise, aim)
        return particles.estimate(
            gradient,
            with_prediction=with_prediction,
            with_terms=with_terms,
            with_drift=with_drift,
            with_samples=with_samples,
            with_values=with_values,
        )

    if gradient not in REWARD_GRADIENTS:
        return estimate(rows, x, noise)
    parts, start = [], 0
    with differentiable_attention():
        # The graph of one chunk is all that memory must hold.
        for groups in law.execution.parts(rows.groups, num_samples):
            end = start + sum(groups)
            part = LawAtRows(law, rows.owners[start:end], groups)
            parts.append(estimate(part, x[start:end], noise[num_samples * start : num_samples * end]))
            start = end
    return LookAhead.joined(parts)


@dataclass(frozen=True)
class _Particles:
    """Particles whose look-aheads are drawn at once.

    Attributes:
        rows: the law at the particles.
        posterior: draws the look-aheads.
        x: particles `[N, ...]`.
        noise_to_signal: their level.
        noise: of the look-aheads, `[N K, ...]`.
        aim: of the step, where that is not what the model predicts.
    """

    rows: LawAtRows
    posterior: PosteriorSampler
    x: Tensor
    noise_to_signal: float
    noise: Tensor
    aim: Aim | None

    def estimate(
        self,
        gradient: str | None,
        *,
        with_prediction: bool,
        with_terms: bool,
        with_drift: bool,
        with_samples: bool,
        with_values: bool,
    ) -> LookAhead:
        """The estimates; arguments as of `look_ahead`."""
        through_network = gradient in NETWORK_GRADIENTS
        # Pure noise tells nothing by its likelihood or its score.
        splits = with_terms and self.posterior.has_gradient_terms and self.noise_to_signal < torch.inf
        x = self.x.detach().requires_grad_(through_network)
        with torch.set_grad_enabled(through_network):
            predicted, drawn = self.draw(x, with_prediction or (splits and gradient == "pathwise"))
        with torch.set_grad_enabled(gradient in REWARD_GRADIENTS):
            samples = drawn.samples.detach().requires_grad_() if gradient == "isotropic" else drawn.samples
            zeros = torch.zeros_like(drawn.log_weights)
            rewards, ranks = self.rewards_and_ranks(samples) if with_values else (zeros, zeros)
            values = value(rewards, drawn.log_weights)
        log_weights = drawn.log_weights.detach()
        sizes = effective_sample_size(log_weights) if self.posterior.is_weighted else None
        known = None if predicted is None else predicted.detach()
        kept = {"effective_sample_size": sizes}
        if with_samples:
            tilted = tilted_log_weights(rewards.detach(), log_weights)
            kept |= {"samples": drawn.samples.detach(), "rewards": rewards.detach(), "tilted_log_weights": tilted}
            kept["ranks"] = ranks
        if gradient is None:
            return LookAhead(known, values.detach(), **kept)
        coefficient = 1.0
        if gradient == "tilted_mean":
            terms = tilted_mean_shift(drawn.samples, rewards, drawn.log_weights).unsqueeze(1)
        elif gradient == "hybrid":
            terms = self.hybrid_shift(x, values, rewards, drawn).unsqueeze(1)
        elif gradient == "isotropic":
            terms = isotropic_gradient(values, samples).unsqueeze(1)
            coefficient = isotropic_coefficient(self.noise_to_signal).item()
        else:
            if splits:
                assert known is not None, "`draw` was asked for it"
                terms = self.terms(x, known, rewards, log_weights, drawn.predicted if self.aim is None else None)
            else:
                terms = pathwise_gradient(values, x).unsqueeze(1)
            coefficient = pathwise_coefficient(self.noise_to_signal).item()
        if gradient in REWARD_GRADIENTS:
            right, looked_at = finite_rows(terms), drawn.samples.detach().flatten(0, 1)
            require(right, lambda: self.rows.fault_of_gradient(looked_at, ~right, self.noise_to_signal))
        # Where no look-ahead has a reward, nothing tells where to go.
        terms = terms.masked_fill(torch.isneginf(values).reshape(-1, *[1] * (terms.ndim - 1)), 0.0)
        drift = self.drift(known, drawn) if with_drift else None
        coefficients = torch.full((len(x),), coefficient, device=x.device, dtype=working_dtype(x))
        return LookAhead(known, values.detach(), terms, coefficients, drift, **kept)

    def draw(self, x: Tensor, with_prediction: bool) -> tuple[Tensor | None, PosteriorSamples]:
        """To what the step aims, where that is needed, and the look-aheads."""
        network = self.rows.network
        is_needed = self.posterior.needs_prediction(network)
        predicted = None
        if is_needed or (with_prediction and self.aim is None):
            differentiates = is_needed and self.posterior.differentiates_predicted
            with torch.set_grad_enabled(torch.is_grad_enabled() and differentiates):
                predicted = network.predict(x, self.noise_to_signal)
        drawn = self.posterior.sample(network, x, self.noise_to_signal, predicted, self.noise)
        check_samples(self.posterior, drawn, self.noise)
        if self.aim is None or not with_prediction:
            return predicted, drawn
        with torch.no_grad():
            return self.aim(network, x, self.noise_to_signal), drawn

    def drift(self, predicted: Tensor | None, drawn: PosteriorSamples) -> Tensor:
        """The size of the velocity `[N]`, by what the look-aheads say on average where nothing is predicted."""
        return drift_size(self.x, _mean(drawn) if predicted is None else predicted, self.noise_to_signal)

    def rewards_and_ranks(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled rewards and final values, `[N, K]` each, of the look-aheads `[N, K, ...]`."""
        rewards, ranks = self.rows.tilt_and_rank(samples.flatten(0, 1), self.noise_to_signal)
        shape = (len(samples), -1)
        return rewards.unflatten(0, shape), ranks.unflatten(0, shape)

    def hybrid_shift(self, x: Tensor, values: Tensor, rewards: Tensor, drawn: PosteriorSamples) -> Tensor:
        """The shift of the denoised samples, `[N, ...]`, that joins the pathwise one and the tilted mean."""
        gradient = pathwise_gradient(values, x)
        pathwise = expand(pathwise_coefficient(self.noise_to_signal), gradient) * gradient
        samples, rewards, log_weights = (part.detach() for part in (drawn.samples, rewards, drawn.log_weights))
        tilted_mean = tilted_mean_shift(samples, rewards, log_weights)
        if self.noise_to_signal == torch.inf:
            # There the pathwise gradient says nothing.
            return tilted_mean
        return hybrid_shift(pathwise, tilted_mean, samples, rewards, log_weights, self.noise_to_signal)

    @torch.enable_grad()
    def terms(
        self, x: Tensor, aimed: Tensor, rewards: Tensor, log_weights: Tensor, aimed_at_copies: Tensor | None
    ) -> Tensor:
        """The gradients of rewards and log-likelihoods and the differences of scores, averaged alike: `[N, 3, ...]`.

        Both gradients go through one graph where the step aims at what the look-aheads are made of, `aimed_at_copies`.
        Elsewhere one graph is traversed before the other is built. Either way memory holds one.
        """
        network, posterior = self.rows.network, self.posterior
        rewards = torch.where(torch.isneginf(rewards).all(1, keepdim=True), 0.0, rewards)
        scales = sent(self.rows.law.scales()[self.rows.owners], rewards.device, rewards.dtype)
        proportions = torch.softmax(posterior.log_proportions(log_weights, rewards, scales), 1)
        proportions = proportions.detach()
        of_rewards = pathwise_gradient((proportions * rewards).sum(1), x, aimed_at_copies is not None)
        aim = network.predict if self.aim is None else partial(self.aim, network)
        others = posterior.gradient_terms(
            x, self.noise_to_signal, network.max_noise_to_signal, self.noise, aim, aimed, aimed_at_copies
        )
        of_likelihoods = pathwise_gradient((proportions * others.log_likelihoods).sum(1), x)
        of_scores = torch.einsum("nk,nk...->n...", proportions.to(x.dtype), others.score_differences)
        return torch.stack([of_rewards, of_likelihoods, of_scores], 1)


def drift_size(x: Tensor, denoised: Tensor, noise_to_signal: Level) -> Tensor:
    """Root-mean-square of `x_t - D`, `[N]`, with `x_t` of rectified flow: its velocity times `t = kappa / (1 + kappa)`.

    Args:
        x: observations `[N, ...]` in the bounded coordinate.
        denoised: `E[z | x]`, or what plain sampling takes for it.
        noise_to_signal: their level.
    """
    alpha, sigma = signal_and_noise(noise_to_signal)
    difference = expand(1 / (alpha + sigma), x) * x - denoised
    return difference.flatten(1).square().mean(1).sqrt()


def _mean(drawn: PosteriorSamples) -> Tensor:
    """Of the look-aheads of each particle, `[N, ...]`, without a graph."""
    samples, weights = drawn.samples.detach(), torch.softmax(drawn.log_weights.detach(), 1)
    return torch.einsum("nk,nk...->n...", weights.to(samples.dtype), samples)
