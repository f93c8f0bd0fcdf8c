"""What posterior samplers and transitions may ask of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .levels import Denoiser, Level

FlowMap = Callable[[Tensor, Level, Level], Tensor]
"""Maps observations `[N, ...]` from one noise-to-signal ratio to a lower one along the probability-flow ODE."""


InnerFlowMap = Callable[[Tensor, Level, Level, Tensor, Level], Tensor]
"""A Diamond Map: maps inner states `[N, ...]` from `s` to `r`, given the observations `[N, ...]` and their level."""


@dataclass(frozen=True)
class Network:
    """A model at rows whose prompts are fixed, in the bounded coordinate of `levels`.

    It is built from functions and used through its methods, each of which raises a `ValueError` where the model lacks
    what is asked of it.

    Attributes:
        predictor: gives the clean sample that the model predicts as it is loaded, which is what plain sampling uses:
            the posterior mean of an ordinary model, the end of the flow map of a few-step one.
        denoiser: gives the posterior mean `E[z | x]`; None where the model is a flow map alone.
        map: the model's own flow map, else that of its Diamond Map; None where it has neither.
        predicts_mean: whether `predictor` gives the posterior mean, so that either serves for both.
        max_noise_to_signal: the largest level at which it is asked about renoised observations.
        inner_map: its Diamond Map; None where none is loaded.
        maps_by_prediction: whether `map` leads to clean data by `predictor`, so that either serves for both.
    """

    predictor: Denoiser
    denoiser: Denoiser | None = None
    map: FlowMap | None = None
    predicts_mean: bool = True
    max_noise_to_signal: float = math.inf
    inner_map: InnerFlowMap | None = None
    maps_by_prediction: bool = False

    @property
    def has_denoiser(self) -> bool:
        """Whether `denoise` can be called."""
        return self.denoiser is not None

    @property
    def has_flow_map(self) -> bool:
        """Whether `flow_map` can be called."""
        return self.map is not None

    @property
    def has_diamond_map(self) -> bool:
        """Whether `diamond_map` can be called."""
        return self.inner_map is not None

    def predict(self, x: Tensor, noise_to_signal: Level) -> Tensor:
        """The clean samples `[N, ...]` that the model predicts as it is loaded, at observations `[N, ...]`."""
        return self.predictor(x, noise_to_signal)

    def denoise(self, x: Tensor, noise_to_signal: Level) -> Tensor:
        """The posterior means `E[z | x]`, `[N, ...]`, at observations `[N, ...]`."""
        if self.denoiser is None:
            raise _lacking("posterior mean E[z | x]", "set needs_denoiser = True in")
        return self.denoiser(x, noise_to_signal)

    def flow_map(self, x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level) -> Tensor:
        """Moves observations `[N, ...]` to a lower level along the probability-flow ODE, in one evaluation."""
        if self.map is None:
            raise _lacking("flow map", "override check in")
        return self.map(x, noise_to_signal, next_noise_to_signal)

    def diamond_map(self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level) -> Tensor:
        """Moves inner states `[N, ...]` from `s` to `r`, given the observations `x`, `[N, ...]`, and their level."""
        if self.inner_map is None:
            raise _lacking("Diamond Map", "set needs_diamond_map = True in")
        return self.inner_map(xbar, s, r, x, noise_to_signal)

    def mean(self, x: Tensor, noise_to_signal: Level, predicted: Tensor | None) -> Tensor:
        """The posterior means `E[z | x]`, `[N, ...]`.

        Args:
            x: observations `[N, ...]`.
            noise_to_signal: their level.
            predicted: `predict(x, noise_to_signal)`, which is re-used where it is the posterior mean already.
        """
        if self.predicts_mean and predicted is not None:
            return predicted
        return self.denoise(x, noise_to_signal)


def _lacking(missing: str, remedy: str) -> ValueError:
    return ValueError(
        f"the model has no {missing}, which is asked of it; {remedy} the posterior sampler or transition that asks, so "
        "that such models are refused before sampling starts"
    )
