"""The interface of a model that declares its own transitions."""

from __future__ import annotations

from ..core.model import Model
from .base import Transition
from .glass import GlassTransition
from .ode import ODETransition
from .renoise import RenoiseTransition


class SampledModel(Model):
    """A pretrained model with default transitions, which methods use if the caller names none."""

    def stock_transition(self) -> Transition:
        """The transition of the stock pipeline, by which the model samples without alignment."""
        return ODETransition()

    def stochastic_transition(self) -> Transition:
        """A random transition, for methods in which copies of a particle must part."""
        return GlassTransition() if self.predicts_mean else RenoiseTransition()
