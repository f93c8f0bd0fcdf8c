"""A small network on top of a CLIP's image features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..hub import download_from_page, page_path
from ..weight_files import read_weights
from .base import CLIPBasedReward

CLIP_CHECKPOINT = "openai/clip-vit-large-patch14"
"""The one that the published heads were trained on."""


class CLIPHeadReward(CLIPBasedReward):
    """A reward by a small network on the unit image features of a CLIP, which subclasses define. Prompts are not read.

    The head stays in float32 if the tower is in half precision; ratings then deviate by up to 2e-3 (float16) and 2e-2
    (bfloat16).

    Args:
        head: a local file with the head's weights, in safetensors or in torch's format (read with
            `weights_only=True`); None for the published ones, which are downloaded once and checked by their hash.
        checkpoint: the CLIP that the head was trained on, in any form that `CLIPReward` takes; for the published heads
            OpenAI's ViT-L/14.
        name: name under which the scores are reported; None for that of the reward.
        options: see `CLIPReward`.

    Attributes:
        default_name: of the reward.
        url, sha256: of the published head.

    Raises:
        OSError, ValueError: as `CLIPReward`; or the head cannot be found, or is of another architecture.
    """

    reads_prompts = False
    size = "1.7 GB"
    default_reward_scale = 5.0
    hub_files = ((CLIP_CHECKPOINT, "model.safetensors"),)
    default_name: ClassVar[str]
    url: ClassVar[str]
    sha256: ClassVar[str]

    def __init__(
        self,
        head: str | PathLike[str] | None = None,
        checkpoint: str | PathLike[str] = CLIP_CHECKPOINT,
        *,
        name: str | None = None,
        **options: Any,
    ) -> None:
        name = name or self.default_name
        weights = self._read_head(name, head)
        super().__init__(checkpoint, name=name, **options)
        self.head = self.build_head(weights)
        try:
            self.head.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"Reward '{name}' got head='{head or self.url}' of another architecture "
                f"({' '.join(str(error).split())}); give the published head."
            ) from error
        self.head.eval().requires_grad_(False).to(self.tower.device)

    @abstractmethod
    def build_head(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A network of the architecture of these weights, with any values, which maps features `[B, D]` to `[B, 1]`."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Ratings `[B]`, about 1 to 10, of images `[B, 3, H, W]` in [0, 1]."""
        return self.rate(self.shared_image_features(images))

    def rate(self, features: Tensor) -> Tensor:
        """Ratings `[B]` of unit CLIP image features `[B, D]`.

        Raises:
            ValueError: the features are not as wide as the head's weights.
        """
        weight = next(self.head.parameters())
        if features.shape[1] != weight.shape[1]:
            raise ValueError(
                f"Reward '{self.name}' got CLIP features of width {features.shape[1]}, but its head reads "
                f"{weight.shape[1]}; give the checkpoint of the CLIP that the head was trained on."
            )
        return self.head(features.to(weight.dtype))[:, 0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the tower as `CLIPReward.to` does, and the head; returns the reward."""
        super().to(device, dtype)
        self.head.to(device=self.tower.device, dtype=torch.promote_types(self.tower.dtype, torch.float32))
        return self

    def _read_head(self, name: str, head: str | PathLike[str] | None) -> dict[str, Tensor]:
        try:
            return read_weights(download_from_page(self.url, self.sha256) if head is None else Path(head))
        except (OSError, RuntimeError, ValueError) as error:
            raise OSError(
                f"Reward '{name}' cannot load head='{head or self.url}' ({' '.join(str(error).split())[:300]}); "
                "give head=..., a local file of the published weights."
            ) from error

    @classmethod
    def missing_downloads(cls) -> list[str]:
        """See `Reward`; the weights of the head count too."""
        path = page_path(cls.url)
        return super().missing_downloads() + ([] if path.exists() else [path.name])
