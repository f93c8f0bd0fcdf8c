"""Transitions: how a particle moves from one noise level to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..core.interval import Interval
from ..core.levels import Level
from ..core.model import Model, Sampler
from ..core.network import Network


class Transition(Sampler, ABC):
    """Moves a particle from one noise level to the next, given its predicted clean sample and driving noise.

    Attributes:
        uses_prediction: whether a step depends on the denoised sample that it starts from.

    Example:
        >>> NoAlignment(transition=AncestralTransition()).transition.is_stochastic
        True
    """

    uses_prediction: bool = True

    def without_diamond_map(self, model: Model) -> str:
        return "GlassTransition()" if model.has_denoiser else "RenoiseTransition()"

    def needs_prediction(self, network: Network) -> bool:
        """Whether a step needs `predicted` of this network; if not, plain sampling does not compute it."""
        return self.uses_prediction

    def aim(self, network: Network, x: Tensor, noise_to_signal: Level, next_noise_to_signal: float) -> Tensor:
        """The clean sample `[N, ...]` to which the step's velocity at `x` points; by default the model's prediction."""
        return network.predict(x, noise_to_signal)

    @abstractmethod
    def step(self, network: Network, x: Tensor, interval: Interval, predicted: Tensor | None, noise: Tensor) -> Tensor:
        """Moves particles to the next noise level.

        Args:
            network: the model, for transitions that take more than one evaluation.
            x: particles `[N, ...]` in the bounded coordinate.
            interval: from the level of `x` down to the next one.
            predicted: the loaded model's prediction at `x`, `network.predict(x, interval.start)`, perhaps tilted; None
                if it is not needed.
            noise: driving noise, standard normal of the shape of `x`; the step is a deterministic map of it.

        Returns:
            Particles at the next level, `[N, ...]`.
        """

    @abstractmethod
    def tilt_gain(self, interval: Interval) -> float:
        """The factor between a shift of the denoised sample and the mean of the driving noise that has the same effect.

        A shift `d` of the denoised sample moves the mean of a stochastic step as much as driving noise of mean
        `tilt_gain * d` does. The factor is 0 if the step does not depend on the driving noise.
        """

    def is_random(self, interval: Interval) -> bool:
        """Whether a step depends on its driving noise; to be overridden where it does although `tilt_gain` is 0."""
        return self.tilt_gain(interval) != 0

    def draws_noise(self, interval: Interval) -> bool:
        """Whether driving noise is drawn for a step; if not, `noise` is zero."""
        return self.is_random(interval)

    @property
    def is_stochastic(self) -> bool:
        """Whether steps between positive levels depend on their driving noise."""
        return self.is_random(Interval(2.0, 1.0))
