"""What every pretrained model owes posterior samplers, transitions and methods, and what they ask of it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .levels import Level, ode_step
from .tensors import sent
from .typed import Typed


@dataclass(frozen=True)
class Conditions:
    """Prompt features of `B` images, and how the network is guided by them.

    Attributes:
        features: tensors with one row an image, as the family's network takes them.
        negative_features: the same for the negative prompts; None where there is no classifier-free guidance.
        classifier_free_guidance_scale: weight of the classifier-free guidance.
        shared: what all images share (sizes, position ids, options of the network).
    """

    features: dict[str, Tensor]
    negative_features: dict[str, Tensor] | None = None
    classifier_free_guidance_scale: float = 1.0
    shared: dict[str, Any] = field(default_factory=dict)

    def rows(self, index: Tensor) -> Conditions:
        """The conditions of the images `index [N]`, one row each; these themselves where that is all rows in order."""
        num_images, negative = len(next(iter(self.features.values()), index)), self.negative_features
        if index.device.type == "cpu" and torch.equal(index, torch.arange(num_images)):
            return self

        def rows(features: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: feature[sent(index, feature.device)] for name, feature in features.items()}

        return replace(self, features=rows(self.features), negative_features=negative and rows(negative))


class Model(ABC):
    """A pretrained model of observations in the bounded coordinate of `levels`: all that alignment needs.

    What it has is told by properties, which a subclass may override with values of its class.

    Attributes:
        name: name of the model family.
    """

    name: str = "model"

    @property
    def has_denoiser(self) -> bool:
        """Whether `denoise` gives the posterior mean."""
        return True

    @property
    def has_flow_map(self) -> bool:
        """Whether `flow_map` maps between levels, without the help of a Diamond Map."""
        return False

    @property
    def has_diamond_map(self) -> bool:
        """Whether `diamond_map` maps inner states."""
        return False

    @property
    def predicts_mean(self) -> bool:
        """Whether `predict` is the posterior mean too."""
        return True

    @property
    def maps_by_prediction(self) -> bool:
        """Whether `flow_map` leads to clean data by `predict`, so that either serves for both."""
        return self.has_flow_map and not self.predicts_mean

    @property
    def max_noise_to_signal(self) -> float:
        """The largest level that it was trained at."""
        return math.inf

    def parts(self, preview: bool = False) -> tuple[nn.Module | None, nn.Module | None]:
        """The network and the decoder, which errors name; None for what is no module."""
        return None, None

    def evaluating_network(self, in_blocks: bool) -> AbstractContextManager[None]:
        """Context of every evaluation of the network, which has one where more is to be done than to call it.

        Args:
            in_blocks: whether what is differentiated is evaluated again on the backward pass block by block, so that
                the graph of one block is all that is ever held.
        """
        return nullcontext()

    def evaluating_decoder(self, in_blocks: bool, preview: bool = False) -> AbstractContextManager[None]:
        """Context of every evaluation of the decoder; arguments as of `evaluating_network` and of `parts`."""
        return nullcontext()

    @abstractmethod
    def predict(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        """The clean sample that the model as loaded predicts at observations `[N, ...]`, differentiable in `x`.

        It is the posterior mean of an ordinary model and the end of the flow map of a few-step one. The result has the
        dtype of `x`, whatever the dtype of the network. The conditions have `N` rows.
        """

    def denoise(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        """`E[z | x]`; arguments as of `predict`. Called only where `has_denoiser`."""
        return self.predict(x, noise_to_signal, conditions)

    def flow_map(
        self, x: Tensor, noise_to_signal: Level, next_noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """The observation at a lower level on the same path of the probability-flow ODE, `[N, ...]`, in one evaluation.

        Called only where `has_flow_map`. A few-step model knows the end of the path; levels between lie on the chord.
        """
        return ode_step(x, self.predict(x, noise_to_signal, conditions), noise_to_signal, next_noise_to_signal)

    def diamond_map(
        self, xbar: Tensor, s: Level, r: Level, x: Tensor, noise_to_signal: Level, conditions: Conditions
    ) -> Tensor:
        """`X_{s -> r}(xbar; x)` of the Diamond Map that is loaded, `[N, ...]`; called only where `has_diamond_map`."""
        raise NotImplementedError(f"a {self.name} model has no Diamond Map")

    def evaluations_per_row(self, noise_to_signal: Level, conditions: Conditions) -> int:
        """Network evaluations that one row costs at a level: two where there is classifier-free guidance."""
        return 1 if conditions.negative_features is None else 2

    @abstractmethod
    def decode(self, z: Tensor, conditions: Conditions, preview: bool = False) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1], float32 or wider, of clean latents `[N, ...]`; differentiable in `z`.

        With `preview` a smaller decoder may serve, where there is one.
        """


class Sampler(Typed):
    """A part of a method that draws from a model: a posterior sampler or a transition.

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

    def uses_diamond_map(self, model: Model) -> bool:
        """Whether it evaluates the model's Diamond Map: as such, or as the flow map of a model that has no other."""
        is_flow_map = model.has_diamond_map and not model.has_flow_map
        return self.needs_diamond_map or (self.follows_flow_map and is_flow_map)

    def without_diamond_map(self, model: Model) -> str:
        """What to use in its place with a model that has no Diamond Map."""
        return "another part"

    def check(self, model: Model) -> None:
        """Raises a `ValueError` where the model lacks what is asked of it."""
        if self.needs_diamond_map and not model.has_diamond_map:
            raise ValueError(
                f"{type(self).__name__} needs a Diamond Map, but this {model.name} model has none; load one with "
                f"pipe.load_diamond_map(...), or take {self.without_diamond_map(model)} in its place"
            )
        if self.needs_denoiser and not model.has_denoiser:
            raise ValueError(
                f"{type(self).__name__} needs the posterior mean E[z | x], but this {model.name} model is a few-step "
                "flow map without one; give its base model as score_model=..., name its few-step LoRA in few_step=..., "
                f"use {self.without_denoiser}, or set few_step=False if it is an ordinary model"
            )
