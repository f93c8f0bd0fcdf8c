"""ImageReward as computed by the `image-reward` package."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Reward
from .errors import first_line
from .hub import check_hub_options, download
from .imagereward import ImageReward
from .imagereward.official import import_official
from .registry import register_reward
from .weight_files import check_layout


class PackageNetwork(nn.Module):
    """The package's model with the interface of `ImageRewardNetwork`."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `[B]` of normalised pixels `[B, 3, H, W]` and token ids and their mask, both `[B, L]`."""
        self.model.device = pixels.device
        return self.model.score_gard(input_ids, attention_mask, pixels)[:, 0]


@register_reward("imagereward_package")
class PackageImageReward(ImageReward):
    """The score of `imagereward`, computed by the network of the `image-reward` package.

    Use it to check `imagereward`, which is the same function, needs no further package, and has options to save memory.
    Images and prompts are preprocessed by this package.

    Args:
        checkpoint: as in `ImageReward`.
        name: name under which the scores are reported.
        tokenizer: name or folder of the uncased BERT tokenizer.
        med_config: the file with the text tower's configuration; by default the published one, from the Hub.
        max_batch_size: as in `ImageReward`.
        device: of the model; images are moved to it.
        hub_options: as in `ImageReward`.

    Raises:
        ImportError: the package or one of its dependencies is not installed, or cannot be imported.
        OSError: the checkpoint, the configuration or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the checkpoint is of another architecture; the first tensor at fault is named.
    """

    requires = ("ImageReward",)

    def __init__(
        self,
        checkpoint: str | PathLike[str] = "THUDM/ImageReward",
        *,
        name: str = "imagereward_package",
        tokenizer: str | PathLike[str] = "google-bert/bert-base-uncased",
        med_config: str | PathLike[str] | None = None,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        **hub_options: Any,
    ) -> None:
        self.name = name
        self.max_batch_size = max_batch_size
        check_hub_options(name, hub_options)
        package = _import_package(name)
        config = med_config or download(name, "THUDM/ImageReward", "med_config.json", hub_options)
        self.model = self._load(checkpoint, hub_options, lambda weights: _build(package, weights, str(config)))
        self._prepare(tokenizer, 224, hub_options)
        self.to(device)

    @staticmethod
    def import_package(name: str) -> ModuleType:
        """Imports the network of the package in `requires`, which cannot be imported by its name alone."""
        return import_official()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward."""
        return Reward.to(self, device, dtype)


def _build(package: ModuleType, weights: Mapping[str, Tensor], med_config: str) -> PackageNetwork:
    model = package.ImageReward(med_config=med_config)
    check_layout(weights, {name: weight.shape for name, weight in model.state_dict().items()})
    model.load_state_dict(weights)
    return PackageNetwork(model).eval().requires_grad_(False)


def _import_package(name: str) -> ModuleType:
    try:
        return import_official()
    except Exception as error:
        raise ImportError(
            f"Reward '{name}' needs the package 'image-reward', which cannot be imported ({first_line(error)}): "
            'run `pip install "diamond-diffusers[image-reward]"` and `pip install --no-deps image-reward==1.5`, or '
            "take reward 'imagereward', which computes the same score without it."
        ) from error
