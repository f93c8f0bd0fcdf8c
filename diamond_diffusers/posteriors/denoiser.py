"""The model's own prediction as the only look-ahead."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.levels import Level
from ..core.network import Network
from . import POSTERIORS
from .base import PosteriorSampler, PosteriorSamples, equally_weighted


@POSTERIORS.register("denoiser")
@dataclass(frozen=True)
class DenoiserPoint(PosteriorSampler):
    """The model's prediction as the only look-ahead, as in DPS (arXiv 2209.14687) and FK steering.

    The prediction is the posterior mean, or for a few-step model the end of its flow map (arXiv 2511.22688). It costs
    no evaluation of its own, but the values that it gives are not consistent.

    Example:
        >>> SMC(num_particles=8, posterior=DenoiserPoint())
    """

    num_samples = 1
    draws_noise = False

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        # It uses the prediction.
        assert predicted is not None
        return equally_weighted(predicted, 1)
