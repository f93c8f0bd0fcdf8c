"""No alignment, and its simplest use: the best of several plain samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...core.interval import Interval
from ...transitions.base import Transition
from ...transitions.sampled_model import SampledModel
from ..base import Method
from ..cloud import Cloud
from ..law import Law
from ..random_source import RandomSource, driving_noise
from . import METHODS


@METHODS.register("none")
@dataclass(frozen=True)
class NoAlignment(Method):
    """Plain sampling; a reward is only reported.

    Args:
        transition: how particles move; None for how the stock pipeline moves them.
        num_particles: plain samples of each image.

    Example:
        >>> pipe("a red star", alignment=NoAlignment(transition=AncestralTransition()), num_inference_steps=2)
    """

    transition: Transition | None = None
    num_particles: int = 1

    needs_reward = False
    grows: ClassVar[str | None] = None

    def default_transition(self, model: SampledModel) -> Transition:
        return model.stock_transition()

    def step(self, law: Law, cloud: Cloud, interval: Interval, random: RandomSource) -> Cloud:
        network = law.rows(cloud.x).network
        noise = driving_noise(random, self.moves, cloud.x, self.num_particles, interval)
        predicted = self.predicted(law, cloud.x, interval.start)
        x = self.moved(network, cloud.x, interval, predicted, noise)
        return Cloud(x, cloud.log_weights, cloud.log_evidence)
