"""Look-aheads drawn by the inner GLASS flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_counts
from ..core.glass import check_inner_options, sample_posterior
from ..core.levels import Level
from ..core.network import Network
from . import POSTERIORS
from .base import PosteriorSampler, PosteriorSamples, equally_weighted


@POSTERIORS.register("glass")
@dataclass(frozen=True)
class GlassPosterior(PosteriorSampler):
    """Posterior samples of an ordinary denoiser by the inner GLASS flow (arXiv 2509.25170).

    They are exact as `num_inner_steps` grows. One observation costs `num_samples * (num_inner_steps - 1)` evaluations
    beyond its denoised sample.

    Args:
        num_inner_steps: number of steps of the inner flow; at least 2 if `num_samples > 1`. With the default solver,
            two steps have the spread of the posterior at low noise, but are far from its law at high noise.
        num_samples: number of samples of each observation.
        solver: solver of the inner flow: `euler`, `multistep` or `exponential`.

    Example:
        >>> Guidance(GlassPosterior(num_samples=4), Guide("tilted_mean"))
    """

    num_inner_steps: int = 4
    num_samples: int = 1
    solver: str = "exponential"

    needs_denoiser = True
    without_denoiser = "WeightedPosterior() or, in methods that take one look-ahead, DenoiserPoint()"

    def __post_init__(self) -> None:
        check_inner_options(self.num_inner_steps, self.solver)
        check_counts(num_samples=self.num_samples)
        if self.num_inner_steps == 1 and self.num_samples > 1:
            raise ValueError(
                f"num_inner_steps is 1, which makes all {self.num_samples} samples the denoiser point; "
                "take num_inner_steps >= 2 or num_samples=1"
            )

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
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
        return equally_weighted(samples, self.num_samples)
