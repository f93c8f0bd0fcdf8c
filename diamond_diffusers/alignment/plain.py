"""No alignment, and its simplest use: the best of several plain samples."""

from __future__ import annotations

from dataclasses import dataclass

from ..backbones.base import Denoising
from ..transitions import Transition
from .base import Alignment, Cloud
from .model import TiltedModel
from .random_source import RandomSource, driving_noise


@dataclass(frozen=True)
class NoAlignment(Alignment):
    """Plain sampling; a reward is only reported.

    Args:
        transition: how particles move; None for how the stock pipeline moves them.
        num_particles: plain samples of each image.
    """

    transition: Transition | None = None
    num_particles: int = 1

    needs_reward = False
    grows = None

    def default_transition(self, model: Denoising) -> Transition:
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


@dataclass(frozen=True)
class BestOfN(NoAlignment):
    """Draws `num_particles` plain samples of each image and keeps the one of highest reward.

    The first is the plain sample itself, which a `reward_scale` of 0 returns. All are drawn at once; see `RandomSearch`
    for rounds.
    """

    num_particles: int = 4

    needs_reward = True
    default_selection = "best"
    grows = "num_particles"
