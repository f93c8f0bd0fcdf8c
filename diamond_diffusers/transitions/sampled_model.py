"""A model that says how it is sampled."""

from __future__ import annotations

from ..core.model import Model
from .base import Transition
from .glass import GlassTransition
from .ode import ODETransition
from .renoise import RenoiseTransition


class SampledModel(Model):
    """A pretrained model that says how its particles move where the caller does not: what methods run on."""

    def stock_transition(self) -> Transition:
        """How the model samples without alignment."""
        return ODETransition()

    def stochastic_transition(self) -> Transition:
        """How its particles move where copies of one must part."""
        return GlassTransition() if self.predicts_mean else RenoiseTransition()
