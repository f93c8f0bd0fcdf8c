"""ImageReward as computed by the `image-reward` package, where that package imports."""

from __future__ import annotations

import importlib
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Reward
from .errors import first_line
from .hub import check_hub_options, download
from .imagereward import ImageReward, find_checkpoint
from .registry import register_reward


class PackageNetwork(nn.Module):
    """The package's model behind the call of `ImageRewardNetwork`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores `[B]` of normalised pixels `[B, 3, H, W]` and token ids and their mask, both `[B, L]`."""
        self.model.device = pixels.device
        return self.model.score_gard(input_ids, attention_mask, pixels)[:, 0]


@register_reward("imagereward_package")
class PackageImageReward(ImageReward):
    """The score of `imagereward`, computed by the `image-reward` package instead of this one.

    The package imports with transformers 4.27.4 to 4.55 only, and needs `openai-clip` beside its declared dependencies;
    elsewhere take `imagereward`, which is the same function.

    Args:
        checkpoint: as in `ImageReward`.
        name: under which the scores are reported.
        tokenizer: name or folder of the uncased BERT tokenizer.
        med_config: the file with the text tower's configuration; by default the published one, from the Hub.
        max_batch_size: as in `ImageReward`.
        device: of the model; images are moved to it.
        hub_options: as in `ImageReward`.

    Raises:
        ImportError: the package is not installed, or does not import with the installed transformers.
        OSError: the checkpoint, the configuration or the tokenizer cannot be found or read.
        TypeError: an option is unknown.
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
        path = find_checkpoint(name, checkpoint, hub_options)
        config = med_config or download(name, "THUDM/ImageReward", "med_config.json", hub_options)
        model = package.load(str(path), device="cpu", med_config=str(config))
        self.model = PackageNetwork(model).eval().requires_grad_(False)
        self._prepare(tokenizer, 224, hub_options)
        self.to(device)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward."""
        return Reward.to(self, device, dtype)


def _import_package(name: str) -> Any:
    try:
        return importlib.import_module("ImageReward")
    except Exception as error:
        raise ImportError(
            f"Reward '{name}' needs the package 'image-reward', which does not import here "
            f"({first_line(error)}); it works with transformers 4.27.4 to 4.55: take reward 'imagereward', "
            "which computes the same score without it."
        ) from error
