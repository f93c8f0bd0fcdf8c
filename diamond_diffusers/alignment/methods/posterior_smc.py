"""Sequential Monte Carlo whose particles move by the look-aheads that have valued them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from ...core.interval import Interval
from ...core.values import value
from ...posteriors.base import PosteriorSampler
from ...posteriors.diamond import DiamondPosterior
from ...transitions.base import Transition
from ...transitions.glass import GlassTransition
from ...transitions.sampled_model import SampledModel
from ..cloud import Cloud
from ..law import Law
from ..look_ahead import look_ahead
from ..random_source import RandomSource
from . import METHODS
from .posterior_resampling import noised_sample
from .smc import SMC, PathCloud


@dataclass(frozen=True, kw_only=True)
class LookAheadCloud(PathCloud):
    """A cloud that remembers what its look-aheads have scored since it was weighed.

    Attributes:
        unweighed: a value of each particle from the look-aheads of each of those levels, `[B P, m]`.
    """

    unweighed: Tensor


@METHODS.register("posterior_smc")
@dataclass(frozen=True)
class PosteriorSMC(SMC):
    """SMC that draws the look-aheads of a step once: they value its particles, and the first of each moves it on.

    Given a clean sample, the next state has a Gaussian law, so that a posterior sampler makes the transition::

        z_k ~ p(z | y),  k = 1..K
        y' = g y + (1 - g) (z_1 + s / (1 - s) e),     with g and s of the early stop (GLASS, arXiv 2509.25170)
        at a valuation:  V = log mean exp(r(z)),  over the look-aheads of all steps since the one before

    On paths of states and look-aheads the values are functions of the path, and `y'` has the law of a transition that
    is exact where look-aheads are, so that SMC samples the tilted law and its evidence as ever (`SMC`). A step costs
    its look-aheads alone, half of what `SMC` pays with one look-ahead of a Diamond Map and a `DiamondTransition`.

    All look-aheads on a path count, since with one of them alone the value is mostly its noise: the mean error of
    `log Z` on a mixture, with an exact map, one look-ahead and 16 particles, is -.4, -.4 and -.3 with 5, 12 and 40
    steps; -.5, -.7, -.9 by the last look-ahead alone; -.4, -1.3, -5 where particles are valued after every step.

    With an imperfect map the law is that of its steps: with samples a third too narrow, in 8 steps, `E[Z]` is .85 of
    the evidence. It is right where such look-aheads give values alone and `SMC` moves particles by GLASS transitions of
    several inner steps. That is the accurate choice.

    Guidance tilts the mean of `e`; the last step draws none. With a `reward_scale` of 0 particles are plain samples
    of this kind of step. Options: see `SMC`; at steps without a valuation look-aheads are drawn and scored all the
    same.

    Args:
        posterior: draws equally weighted look-aheads, of which each has the law of the posterior.
        transition: a `GlassTransition` of one inner step, which says how the noises before and after a step correlate;
            None for `GlassTransition()`.

    Example:
        >>> method = PosteriorSMC(num_particles=2, posterior=DiamondPosterior(num_samples=1))
        >>> pipe("a red star", alignment=method, num_inference_steps=2)
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

    def _parts_copies(self, transition: Transition) -> bool:
        # Look-aheads differ even where no noise is added to them: at full correlation.
        return self.posterior.draws_noise or super()._parts_copies(transition)

    def resolve(self, model: SampledModel) -> Self:
        # Look-aheads are what moves the particles: the transition, which says how noises correlate, evaluates nothing.
        method = self if self.transition is not None else replace(self, transition=GlassTransition())
        return method.with_schedule(model).with_posterior(model)

    def start(self, law: Law, x: Tensor, num_steps: int) -> LookAheadCloud:
        cloud = super().start(law, x, num_steps)
        return LookAheadCloud(**vars(cloud), unweighed=x.new_zeros(len(x), 0))

    def replace_particles(self, cloud: Cloud, x: Tensor) -> LookAheadCloud:
        # Nothing that an old particle has seen counts for the new one.
        replaced = super().replace_particles(cloud, x)
        assert isinstance(replaced, LookAheadCloud), "`start` makes one"
        return replace(replaced, unweighed=replaced.unweighed[:, :0])

    def _with_estimates(
        self, law: Law, cloud: PathCloud, noise_to_signal: float, random: RandomSource, is_valued: bool
    ) -> LookAheadCloud:
        """Draws the look-aheads of a step, and values particles by all since they were weighed last."""
        assert isinstance(cloud, LookAheadCloud), "`start` makes one"
        drawn = (law, self.posterior, cloud.x, noise_to_signal, random)
        if self.guide is not None and self._guides_at(law, noise_to_signal):
            ahead = self.guide.look_ahead(*drawn, with_prediction=False, with_samples=True)
        else:
            counts = self._counts_at(law, noise_to_signal)
            ahead = look_ahead(*drawn, with_prediction=False, with_samples=True, with_values=counts)
        if not self._counts_at(law, noise_to_signal):
            return replace(cloud, ahead=ahead)
        seen = torch.cat([cloud.unweighed, ahead.values[:, None]], 1)
        if not is_valued:
            return replace(cloud, ahead=ahead, unweighed=seen)
        values = value(seen, torch.zeros_like(seen))
        return replace(cloud, ahead=replace(ahead, values=values), unweighed=seen[:, :0])

    def _moved(self, law: Law, cloud: PathCloud, interval: Interval, noise: Tensor) -> Tensor:
        samples, transition = cloud.estimates.samples, self.moves
        assert samples is not None, "the look-aheads of every step are asked for"
        assert isinstance(transition, GlassTransition), "no other kind passes `__post_init__`"
        return noised_sample(cloud.x, samples[:, 0], noise, interval, interval.correlation(transition.correlation))
