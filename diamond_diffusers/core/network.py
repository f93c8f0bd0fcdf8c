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

    Attributes:
        predict: the clean sample that the model predicts as it is loaded, which is what plain sampling uses: the
            posterior mean of an ordinary model, the end of the flow map of a few-step one.
        denoise: the posterior mean `E[z | x]`; None where the model is a flow map alone.
        flow_map: the model's own, else that of its Diamond Map; None where it has neither.
        predicts_mean: whether `predict` is `denoise`, so that either serves for both.
        max_noise_to_signal: the largest level at which it is asked about renoised observations.
        diamond_map: None where none is loaded.
    """

    predict: Denoiser
    denoise: Denoiser | None = None
    flow_map: FlowMap | None = None
    predicts_mean: bool = True
    max_noise_to_signal: float = math.inf
    diamond_map: InnerFlowMap | None = None

    def mean(self, x: Tensor, noise_to_signal: Level, predicted: Tensor) -> Tensor:
        """`E[z | x]`, for which `predicted` is taken where it is that already."""
        return predicted if self.predicts_mean else self.denoise(x, noise_to_signal)
