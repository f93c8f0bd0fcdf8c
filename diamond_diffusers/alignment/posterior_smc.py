"""Sequential Monte Carlo whose particles move by the look-aheads that have valued them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..backbones.base import Denoising
from ..diamond import DiamondPosterior
from ..posteriors import PosteriorSampler
from ..transitions import GlassTransition, Transition
from .look_ahead import LookAhead, look_ahead
from .model import TiltedModel
from .posterior_resampling import noised_sample
from .random_source import RandomSource
from .smc import SMC, PathCloud


@dataclass(frozen=True)
class PosteriorSMC(SMC):
    """SMC that draws the look-aheads of a step once: they value its particles, and the first of each moves it on.

    Given a clean sample, the next state has a Gaussian law, so that a posterior sampler makes the transition::

        z_k ~ p(z | y),  k = 1..K;      V(y) = log mean exp(r(z_k))
        y' = g y + (1 - g) (z_1 + s / (1 - s) e),     with g and s of the early stop (GLASS, arXiv 2509.25170)

    On paths of states and look-aheads the values are functions of the path, and `y'` has the law of an exact
    transition, so that SMC samples the tilted law and its evidence as ever (`SMC`). A step costs its look-aheads alone,
    half of what `SMC` pays with one look-ahead of a Diamond Map and a `DiamondTransition`; and a value is the reward of
    the very sample that the particle moves towards.

    Guidance tilts the mean of `e`; the last step draws none. With a `reward_scale` of 0 particles are plain samples
    of this kind of step. Options: see `SMC`.

    Args:
        posterior: draws equally weighted look-aheads, of which each has the law of the posterior.
        transition: a `GlassTransition` of one inner step, which says how the noises before and after a step correlate;
            None for `GlassTransition()`.
    """

    posterior: PosteriorSampler = field(default_factory=lambda: DiamondPosterior(1))
    transition: Transition | None = field(default_factory=GlassTransition)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.posterior.is_weighted:
            raise ValueError(
                f"posterior is {self.posterior}, whose samples differ in weight, so that one alone has not the law of "
                "the posterior; take DiamondPosterior() or GlassPosterior(), or alignment 'smc'"
            )
        transition = self.transition or GlassTransition()
        if not isinstance(transition, GlassTransition) or transition.num_inner_steps > 1:
            raise ValueError(
                f"transition is {self.transition}, but look-aheads move the particles; take "
                "GlassTransition(correlation=...) with one inner step, or alignment 'smc'"
            )

    def default_transition(self, model: Denoising) -> Transition:
        return GlassTransition()

    def _look_ahead(self, model: TiltedModel, x: Tensor, noise_to_signal: float, random: RandomSource) -> LookAhead:
        drawn = (model, self.posterior, x, noise_to_signal, random)
        is_valued = self._values_at(model, noise_to_signal)
        if is_valued and self.guidance is not None and self.guidance.guides_at(noise_to_signal):
            return self.guidance.look_ahead(*drawn, with_prediction=False, with_samples=True)
        return look_ahead(*drawn, with_prediction=False, with_samples=True, with_values=is_valued)

    def _moved(
        self, model: TiltedModel, cloud: PathCloud, noise_to_signal: float, next_noise_to_signal: float, noise: Tensor
    ) -> Tensor:
        correlation = self.transition.correlation_at(noise_to_signal, next_noise_to_signal)
        z = cloud.ahead.samples[:, 0]
        return noised_sample(cloud.x, z, noise, noise_to_signal, next_noise_to_signal, correlation)
