"""Look-aheads of a Posterior Diamond Map, with one evaluation each (arXiv 2602.05993)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.checks import check_counts
from ..core.flow_map import map_inner_flow
from ..core.levels import Level
from ..core.network import Network
from . import POSTERIORS
from .base import PosteriorSampler, PosteriorSamples, equally_weighted


@POSTERIORS.register("diamond")
@dataclass(frozen=True)
class DiamondPosterior(PosteriorSampler):
    """Samples of `p(z | x)` by a Posterior Diamond Map, each from `num_map_steps` evaluations.

    A map has its guidance baked in, so an evaluation of it costs one of the network even where the base runs with
    classifier-free guidance.

    Args:
        num_samples: number K of look-aheads of each observation.
        num_map_steps: number of evaluations of each look-ahead; maps are distilled for 1.

    Example:
        >>> pipe("a red star", alignment=PosteriorResampling(posterior=DiamondPosterior(2)), num_inference_steps=2)
    """

    num_samples: int = 4
    num_map_steps: int = 1

    needs_diamond_map = True
    uses_prediction = False
    differentiates_predicted = False

    def __post_init__(self) -> None:
        check_counts(num_samples=self.num_samples, num_map_steps=self.num_map_steps)

    def sample(
        self, network: Network, x: Tensor, noise_to_signal: Level, predicted: Tensor | None, noise: Tensor
    ) -> PosteriorSamples:
        samples = map_inner_flow(network, x, noise_to_signal, noise, self.num_map_steps)
        return equally_weighted(samples, self.num_samples)
