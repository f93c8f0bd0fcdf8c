"""No alignment, and its simplest use: the best of several plain samples."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.model import Model
from ...transitions.base import Transition
from ..base import Cloud, Method
from ..law import TiltedModel
from ..random_source import RandomSource, driving_noise
from . import METHODS


@METHODS.register("none")
@dataclass(frozen=True)
class NoAlignment(Method):
    """Plain sampling; a reward is only reported.

    Args:
        transition: how particles move; None for how the stock pipeline moves them.
        num_particles: plain samples of each image.
    """

    transition: Transition | None = None
    num_particles: int = 1

    needs_reward = False
    grows = None

    def default_transition(self, model: Model) -> Transition:
        return model.stock_transition()

    def step(
        self,
        model: TiltedModel,
        cloud: Cloud,
        noise_to_signal: float,
        next_noise_to_signal: float,
        random: RandomSource,
        is_last: bool,
    ) -> Cloud:
        network = model.network(model.owners(self.num_particles, cloud.x.device))
        levels = (noise_to_signal, next_noise_to_signal)
        noise = driving_noise(random, self.transition, cloud.x, self.num_particles, *levels)
        needs_prediction = self.transition.needs_prediction(network)
        predicted = network.predict(cloud.x, noise_to_signal) if needs_prediction else None
        x = self.transition.step(network, cloud.x, *levels, predicted, noise)
        return Cloud(x, cloud.log_weights, cloud.log_evidence)
