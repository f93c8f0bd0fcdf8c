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

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        predicted = cloud.ahead.predicted if cloud.ahead else self.predicted(law, cloud.x, interval.start)
        x = self.branch(law, cloud.x, predicted, interval, random)
        rows, per_image, final = law.rows(x), len(x) // law.num_images, None
        if interval.is_last:
            final = rows.evaluate(x)
            ahead = LookAhead(None, law.values(final).to(x.device))
            values = law.final_values(final).to(x.device)
        elif per_image == self.num_particles:
            return replace(cloud, x=x, ahead=None, figures={})
        else:
            needed = self.moves.needs_prediction(rows.network)
            ahead = look_ahead(law, self.posterior, x, interval.end, random.aside, with_prediction=needed)
            values = ahead.values
        kept = highest(values.unflatten(0, (-1, per_image)), self.num_particles)
        return replace(
            cloud,
            x=x[kept],
            ahead=ahead.rows(kept),
            final=final and final.rows(kept),
            values=values[kept].unflatten(0, (-1, self.num_particles)),
            figures=ahead.figures(per_image),
        )

    def predicted(self, law: Law, x: Tensor, noise_to_signal: float) -> Tensor | None:
        """What the model predicts at rows `[N, ...]`, where the transition needs it."""
        network = law.rows(x).network
        return network.predict(x, noise_to_signal) if self.moves.needs_prediction(network) else None


def highest(values: Tensor, count: int) -> Tensor:
    """The flat indices `[B count]` of the highest `values [B, n]` of each image, best first; of equals the first."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return (order + values.shape[1] * torch.arange(len(values), device=values.device)[:, None]).flatten()
