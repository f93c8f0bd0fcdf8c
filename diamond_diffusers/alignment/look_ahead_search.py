"""Search: branches of each particle are compared by their look-aheads, and the best are kept."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core.checks import check_counts
from ..posteriors.base import PosteriorSampler
from ..posteriors.denoiser import DenoiserPoint
from ..transitions.base import Transition
from .base import Cloud, Method
from .law import Evaluation, TiltedModel
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
        model: TiltedModel,
        x: Tensor,
        predicted: Tensor | None,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
    ) -> Tensor:
        """Branches of the particles `x` at the next level: equally many consecutive ones of each, or one.

        Args:
            model: the law to sample.
            x: particles `[B W, ...]`.
            predicted: what the model predicts at `x`; None where the transition does not need it.
            noise_to_signal: level of `x`.
            next_noise_to_signal: level to reach.
            random: of the run; the plain sample's noise comes from itself, everything else is drawn aside.
        """

    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        predicted = cloud.ahead.predicted if cloud.ahead else self.predicted(model, cloud.x, noise_to_signal)
        x = self.branch(model, cloud.x, predicted, noise_to_signal, next_noise_to_signal, random)
        per_image, final = len(x) // model.num_images, None
        if is_last:
            final = model.evaluate(x, model.owners(per_image, x.device))
            ahead = LookAhead(None, model.reward_scale * final.total.to(x.device))
        elif per_image == self.num_particles:
            return replace(cloud, x=x, ahead=None, figures={})
        else:
            needed = self.transition.needs_prediction(model.network(model.owners(per_image, x.device)))
            ahead = look_ahead(model, self.posterior, x, next_noise_to_signal, random.aside, with_prediction=needed)
        kept = highest(ahead.values.unflatten(0, (-1, per_image)), self.num_particles)
        return replace(
            cloud,
            x=x[kept],
            ahead=ahead.rows(kept),
            final=final and evaluation_rows(final, kept),
            figures=ahead.figures(per_image),
        )

    def predicted(self, model: TiltedModel, x: Tensor, noise_to_signal: float) -> Tensor | None:
        """What the model predicts at rows `[N, ...]`, where the transition needs it."""
        network = model.network(model.owners(len(x) // model.num_images, x.device))
        return network.predict(x, noise_to_signal) if self.transition.needs_prediction(network) else None


def highest(values: Tensor, count: int) -> Tensor:
    """The flat indices `[B count]` of the highest `values [B, n]` of each image, best first; of equals the first."""
    order = values.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return (order + values.shape[1] * torch.arange(len(values), device=values.device)[:, None]).flatten()


def evaluation_rows(evaluation: Evaluation, index: Tensor) -> Evaluation:
    """The evaluations of the rows `index`."""
    total, images = (rows[index.to(rows.device)] for rows in (evaluation.total, evaluation.images))
    return Evaluation(total, {name: term[index.to(term.device)] for name, term in evaluation.terms.items()}, images)
