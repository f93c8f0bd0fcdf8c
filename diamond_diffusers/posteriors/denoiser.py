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
    """Takes what the model predicts as the only look-ahead (DPS, arXiv 2209.14687; FK steering, arXiv 2501.06848).

    It costs nothing, since a step needs the prediction anyway. Of an ordinary model that is the posterior mean, whose
    reward stands for the value and differs from it; of a few-step model it is the end of the flow map (arXiv
    2511.22688).

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
