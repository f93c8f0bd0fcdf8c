"""What every model family owes the rest of the package."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..levels import GaussianPath, Level


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

    @property
    def evaluations_per_row(self) -> int:
        """Network evaluations that one denoised row costs."""
        return 1 if self.negative_features is None else 2

    def rows(self, index: Tensor) -> Conditions:
        """The conditions of the images `index [N]`, one row each."""
        negative = self.negative_features
        return replace(
            self,
            features={name: feature[index] for name, feature in self.features.items()},
            negative_features=negative and {name: feature[index] for name, feature in negative.items()},
        )


class Denoising(ABC):
    """A pretrained model as a denoiser of observations in the bounded coordinate of `levels`: all that alignment needs.

    Attributes:
        path: the family's Gaussian path.
        has_denoiser: whether `denoise` is the posterior mean.
        has_flow_map: whether the model maps between levels in one evaluation.
    """

    path: GaussianPath
    has_denoiser: bool = True
    has_flow_map: bool = False

    @abstractmethod
    def denoise(self, x: Tensor, noise_to_signal: Level, conditions: Conditions) -> Tensor:
        """`E[z | x]` of observations `[N, ...]`, whose conditions have `N` rows; differentiable in `x`.

        The result has the dtype of `x`, whatever the dtype of the network.
        """

    @abstractmethod
    def decode(self, z: Tensor, conditions: Conditions) -> Tensor:
        """Images `[N, 3, H, W]` in [0, 1], float32 or wider, of clean latents `[N, ...]`; differentiable in `z`."""


class Backbone(Denoising):
    """A model family: reads a stock diffusers pipeline of its class.

    A family is one file that subclasses this and is registered with `register_backbone`.

    Args:
        pipeline: the stock pipeline; read, never changed.

    Attributes:
        family: its name in a saved model's configuration.
        refused_arguments: keywords of the stock `__call__` that the family does not support, with the reason.
    """

    family: ClassVar[str]
    refused_arguments: ClassVar[dict[str, str]] = {}

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @abstractmethod
    def encode(self, arguments: Mapping[str, Any]) -> Conditions:
        """Checks the arguments of the stock `__call__` as the stock pipeline does, and encodes its prompts.

        Args:
            arguments: every keyword of the stock `__call__`, with defaults filled in.

        Returns:
            Conditions with a row for each image: `num_images_per_prompt` consecutive ones of each prompt.
        """

    @abstractmethod
    def initial_latents(
        self,
        arguments: Mapping[str, Any],
        conditions: Conditions,
        num_rows: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor:
        """Noise `[num_rows, ...]` in the bounded coordinate at the first level, drawn as by the stock pipeline."""

    @abstractmethod
    def levels(self, arguments: Mapping[str, Any], conditions: Conditions) -> list[float]:
        """Falling noise-to-signal ratios of a run, first to last, from the stock scheduler."""
