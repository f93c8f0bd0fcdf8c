"""Search: branches of each particle are compared by their look-aheads, and the best are kept."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..core.interval import Interval
from ..posteriors.base import PosteriorSampler
from ..posteriors.denoiser import DenoiserPoint
from ..transitions.base import Transition
from .base import Method
from .cloud import Cloud
from .evaluation import Evaluation
from .law import Law
from .look_ahead import LookAhead, look_ahead
from .random_source import RandomSource


@dataclass(frozen=True)
class LookAheadSearch(Method):
    """Keeps the best `num_particles` of the branches of each image's particles, level after level.

    Each step branches the W particles of an image, estimates the value `V` of every branch from its look-aheads, and
    keeps the W branches of the highest. On the last step the true reward takes the place of `V`. A step without a
    choice costs no look-aheads.

    The first branch of the first particle moves as plain sampling with the same transition does, and among equal values
    the first are kept: a `reward_scale` of 0 returns the plain sample. Branches and look-aheads are drawn aside, which
    leaves its draws as they are.

    Subclasses say how particles branch.

    Args:
        num_particles: width W of the search: particles of each image.
        branching: branches of each particle.
        posterior: draws the look-aheads from which values are estimated.
        transition: how particles move.
    """

    num_particles: int = 2
    branching: int = 4
    posterior: PosteriorSampler = field(default_factory=DenoiserPoint)
    transition: Transition | None = None

    default_selection = "best"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(branching=self.branching)

    @abstractmethod
    def branch(
        self,
        law: Law,
        x: Tensor,
        predicted: Tensor | None,
        interval: Interval,
        random: RandomSource,
    ) -> Tensor:
        """Branches of the particles `x` at the next level: equally many consecutive ones of each, or one.

        Args:
            law: to sample.
            x: particles `[B W, ...]`.
            predicted: what the model predicts at `x`; None where the transition does not need it.
            interval: from the level of `x` to the one to reach.
            random: of the run; the plain sample's noise comes from itself, everything else is drawn aside.
        """

    def branched(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        """The cloud of all branches, of which none is chosen yet."""
        predicted = self.predicted_of(law, cloud, interval.start)
        return replace(cloud, x=self.branch(law, cloud.x, predicted, interval, random), ahead=None, figures={})

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        cloud = self.branched(law, cloud, interval, random)
        x, per_image = cloud.x, len(cloud.x) // law.num_images
        if per_image == self.num_particles and not interval.is_last:
            return cloud
        needed = self.moves.needs_prediction(law.rows(x).network)
        ahead, final, values = valued(law, self.posterior, x, interval, random.aside, with_prediction=needed)
        kept = self.kept(values.unflatten(0, (-1, per_image)), random)
        return replace(
            cloud,
            x=x[kept],
            ahead=ahead.rows(kept),
            final=final and final.rows(kept),
            values=values[kept].unflatten(0, (-1, self.num_particles)),
            figures=ahead.figures(per_image),
        )

    def kept(self, values: Tensor, random: RandomSource) -> Tensor:
        """Which branches go on: their flat indices `[B W]`, given the values `[B, n]` of each image's."""
        return highest(values, self.num_particles)


def valued(
    law: Law,
    posterior: PosteriorSampler,
    x: Tensor,
    interval: Interval,
    random: RandomSource,
    *,
    with_prediction: bool,
) -> tuple[LookAhead, Evaluation | None, Tensor]:
    """What a search knows of particles `[N, ...]` at the end of a step, equally many of each image.

    Args:
        law: to sample.
        posterior: draws the look-aheads.
        x: at the end of the interval.
        interval: the step; after the last one particles are clean, and the true reward takes the place of `V`.
        random: what the look-aheads are drawn from.
        with_prediction: whether the next step needs the predicted sample.

    Returns:
        The look-aheads; the decoded and scored particles where they are clean; and the values to compare, `[N]`.
    """
    if interval.is_last:
        final = law.rows(x).evaluate(x)
        return LookAhead(None, law.values(final).to(x.device)), final, law.final_values(final).to(x.device)
    ahead = look_ahead(law, posterior, x, interval.end, random, with_prediction=with_prediction)
    return ahead, None, ahead.values


def highest(values: Tensor, count: int) -> Tensor:
    """The flat indices `[B count]` of the highest `values [B, n]` of each image, best first; of equals the first."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return (order + values.shape[1] * torch.arange(len(values), device=values.device)[:, None]).flatten()
