"""What posterior samplers and transitions may ask of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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


class Capabilities(Protocol):
    """What a model declares of itself.

    Attributes:
        family: name of the model family.
        has_denoiser: whether the posterior mean can be evaluated.
        has_flow_map: whether it is a flow map itself.
        has_diamond_map: whether a Diamond Map is loaded, which contains a flow map.
    """

    family: str
    has_denoiser: bool
    has_flow_map: bool
    has_diamond_map: bool


class UsesNetwork:
    """A posterior sampler or a transition.

    Attributes:
        needs_denoiser: whether it evaluates the posterior mean, beyond what is handed to it.
        needs_diamond_map: whether it evaluates a Diamond Map.
        follows_flow_map: whether it evaluates the flow map, where the model has one.
        without_denoiser: what to use with a model that has none.
    """

    needs_denoiser: bool = False
    needs_diamond_map: bool = False
    follows_flow_map: bool = False
    without_denoiser: str = ""

    def uses_diamond_map(self, model: Capabilities) -> bool:
        """Whether it evaluates the model's Diamond Map, be it as the flow map that the model has of no other kind."""
        is_flow_map = model.has_diamond_map and not model.has_flow_map
        return self.needs_diamond_map or (self.follows_flow_map and is_flow_map)

    def check(self, model: Capabilities) -> None:
        """Raises a `ValueError` where the model lacks what is asked of it."""
        if self.needs_diamond_map and not model.has_diamond_map:
            raise ValueError(
                f"{type(self).__name__} needs a Diamond Map, but this {model.family} model has none; load one with "
                "pipe.load_diamond_map(...), or take GlassPosterior() or GlassTransition() in its place"
            )
        if self.needs_denoiser and not model.has_denoiser:
            raise ValueError(
                f"{type(self).__name__} needs the posterior mean E[z | x], but this {model.family} model is a few-step "
                "flow map without one; give its base model as score_model=..., name its few-step LoRA in few_step=..., "
                f"use {self.without_denoiser}, or set few_step=False if it is an ordinary model"
            )
