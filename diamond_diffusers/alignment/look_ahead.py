"""What a method learns of its particles at one level: predicted samples, values, and the shift towards the reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..posteriors import PosteriorSampler
from ..values import isotropic_shift, pathwise_shift, tilted_mean_shift, value
from .model import TiltedModel
from .random_source import RandomSource
from .resampling import effective_sample_size

GRADIENTS = ("pathwise", "isotropic", "tilted_mean")
REWARD_GRADIENTS = ("pathwise", "isotropic")
"""Those that differentiate the reward."""


@dataclass(frozen=True)
class LookAhead:
    """Estimates at the particles of one level.

    Attributes:
        predicted: what the model as loaded predicts at `x`, `[N, ...]`; None at the last level, and where neither
            look-aheads nor the transition use it.
        values: `V(x)`, `[N]`.
        shift: `kappa^2 grad_y V`, `[N, ...]`, where it was asked for.
        effective_sample_size: of each particle's look-aheads, `[N]`, where they differ in weight.
    """

    predicted: Tensor | None
    values: Tensor
    shift: Tensor | None = None
    effective_sample_size: Tensor | None = None

    def rows(self, index: Tensor) -> LookAhead:
        """The estimates of the particles `index`."""
        estimates = (getattr(self, field.name) for field in fields(self))
        return LookAhead(*(None if estimate is None else estimate[index] for estimate in estimates))

    @classmethod
    def joined(cls, parts: Sequence[LookAhead]) -> LookAhead:
        """The estimates of consecutive parts of a cloud."""
        estimates = ([getattr(part, field.name) for part in parts] for field in fields(cls))
        return cls(*(None if of_parts[0] is None else torch.cat(of_parts) for of_parts in estimates))

    def figures(self, num_particles: int) -> dict[str, Tensor]:
        """What the trace records of `num_particles` particles an image, each `[B]`."""
        values = self.values.unflatten(0, (-1, num_particles))
        figures = {"mean_value": values.mean(1), "best_value": values.amax(1)}
        if self.effective_sample_size is not None:
            sizes = self.effective_sample_size.unflatten(0, (-1, num_particles))
            figures["look_ahead_effective_sample_size"] = sizes.mean(1)
        return figures


def look_ahead(
    model: TiltedModel,
    posterior: PosteriorSampler,
    x: Tensor,
    noise_to_signal: float,
    random: RandomSource,
    gradient: str | None = None,
    with_prediction: bool = True,
) -> LookAhead:
    """Draws look-aheads of particles `[N, ...]` (equally many of each image) and estimates their values.

    Args:
        gradient: None, `pathwise` (differentiates network, decoder and reward), `isotropic` (decoder and reward only)
            or `tilted_mean` (needs at least two look-aheads and no derivative).
        with_prediction: whether the predicted sample is needed for more than the look-aheads.
    """
    num_samples = posterior.num_samples
    owners = model.owners(len(x) // model.num_images, x.device)
    noise = random.normal(num_samples * len(x) // model.num_images, x.shape[1:])
    if gradient not in REWARD_GRADIENTS:
        return _estimate(model, posterior, x, noise_to_signal, owners, noise, gradient, with_prediction)
    # The graph of one chunk is all that memory must hold.
    size = max(1, (model.particle_batch_size or len(noise)) // num_samples)
    parts = [
        _estimate(model, posterior, rows, noise_to_signal, row_owners, row_noise, gradient, with_prediction)
        for rows, row_owners, row_noise in zip(
            x.split(size), owners.split(size), noise.split(size * num_samples), strict=True
        )
    ]
    return LookAhead.joined(parts)


def _estimate(
    model: TiltedModel,
    posterior: PosteriorSampler,
    x: Tensor,
    noise_to_signal: float,
    owners: Tensor,
    noise: Tensor,
    gradient: str | None,
    with_prediction: bool,
) -> LookAhead:
    pathwise, isotropic = gradient == "pathwise", gradient == "isotropic"
    with torch.set_grad_enabled(pathwise):
        x = x.detach().requires_grad_(pathwise)
        network = model.network(owners)
        predicted = None
        if with_prediction or posterior.uses_prediction:
            with torch.set_grad_enabled(pathwise and posterior.differentiates_predicted):
                predicted = network.predict(x, noise_to_signal)
        drawn = posterior.sample(network, x, noise_to_signal, predicted, noise)
    with torch.set_grad_enabled(pathwise or isotropic):
        samples = drawn.samples.detach().requires_grad_() if isotropic else drawn.samples
        rewards = model.tilt(samples.flatten(0, 1), owners, noise_to_signal).unflatten(0, (len(x), -1))
        values = value(rewards, drawn.log_weights)
    if pathwise:
        shift = pathwise_shift(values, x, noise_to_signal)
    elif isotropic:
        shift = isotropic_shift(values, samples, noise_to_signal)
    elif gradient == "tilted_mean":
        shift = tilted_mean_shift(drawn.samples, rewards, drawn.log_weights)
    else:
        shift = None
    sizes = effective_sample_size(drawn.log_weights.detach()) if posterior.is_weighted else None
    return LookAhead(predicted if predicted is None else predicted.detach(), values.detach(), shift, sizes)
