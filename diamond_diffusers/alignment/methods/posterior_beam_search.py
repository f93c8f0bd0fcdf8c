"""Beam search over posterior samples: the best of all look-aheads carry the search to the next level."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from ...core.interval import Interval
from ...core.wording import shown
from ...posteriors.base import PosteriorSampler
from ...posteriors.diamond import DiamondPosterior
from ...transitions.inner_flow import check_correlation
from ...transitions.sampled_model import SampledModel
from ..base import Method
from ..cloud import Cloud
from ..law import Law
from ..look_ahead import look_ahead
from ..look_ahead_search import highest
from ..random_source import RandomSource
from . import METHODS
from .posterior_resampling import noised_sample


@METHODS.register("posterior_beam_search")
@dataclass(frozen=True)
class PosteriorBeamSearch(Method):
    """Beam search over the look-aheads of a Diamond Map: they are the branches, and their rewards decide.

    Given a clean sample, the next state has a Gaussian law, so that a posterior sampler makes the branches::

        z_wk ~ p(z | y_w),  k = 1..K;      the W of W K look-aheads with the highest r(z) are kept
        y'   = g y + (1 - g) (z + s / (1 - s) e),     with g and s of the early stop (GLASS, arXiv 2509.25170)

    A step costs its W K look-aheads alone: their evaluations, decodes and reward calls. `BeamSearch` with
    `DiamondTransition` moves its branches first and then draws look-aheads to value them, for twice the evaluations or
    more, and finds less with as many; what a budget sets is the width of either. It is the counterpart of
    `PosteriorResampling`, which draws one of the look-aheads of each particle by weight and so samples the tilted law.

    With a `reward_scale` of 0 the first look-ahead of the first particle is followed: the plain sample of this kind of
    step. This search is ours.

    Args:
        num_particles: width W of the beam.
        posterior: draws the look-aheads, at least two of equal weight for each particle.
        correlation: `rho` in `[0, 1]` between the noises before and after a step; `"ddpm"` is `kappa_next / kappa`.

    Example:
        >>> method = PosteriorBeamSearch(num_particles=1, posterior=DiamondPosterior(2))
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
    """

    num_particles: int = 2
    posterior: PosteriorSampler = field(default_factory=lambda: DiamondPosterior(4))
    correlation: float | str = "ddpm"

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_correlation(self.correlation)
        if self.posterior.num_samples < 2 or self.posterior.is_weighted:
            raise ValueError(
                f"posterior is {shown(self.posterior)}, but a beam chooses among several look-aheads of equal weight; "
                "take DiamondPosterior(num_samples=4) or GlassPosterior(num_samples=4)"
            )

    def resolve(self, model: SampledModel) -> Self:
        # Look-aheads are what moves the particles.
        return self.with_posterior(model)

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        drawn = (law, self.posterior, cloud.x, interval.start, random)
        ahead = look_ahead(*drawn, with_prediction=False, with_samples=True, with_values=law.is_tilted)
        assert ahead.samples is not None and ahead.ranks is not None, "they were asked for"
        kept = highest(ahead.ranks.reshape(law.num_images, -1), self.num_particles)
        x, z = cloud.x[kept // self.posterior.num_samples], ahead.samples.flatten(0, 1)[kept]
        noise = random.normal(self.num_particles, x.shape[1:])
        values: Tensor = ahead.ranks.flatten()[kept].unflatten(0, (-1, self.num_particles))
        return Cloud(
            noised_sample(x, z, noise, interval, interval.correlation(self.correlation)),
            cloud.log_weights,
            cloud.log_evidence,
            values=values,
            figures=ahead.figures(self.num_particles),
        )
