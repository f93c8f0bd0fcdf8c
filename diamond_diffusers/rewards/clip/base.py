"""The base class of rewards that use a CLIP."""

from __future__ import annotations

from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from ..base import Reward
from ..shared_features import features_of
from .loading import load_clip
from .tower import CLIPTower, Preprocessing


class CLIPBasedReward(Reward):
    """A reward that uses a CLIP, which it shares with all rewards that use the same checkpoint.

    Images of any size are preprocessed on tensors as the checkpoint's own code does on PIL images, and scores are
    differentiable to the pixels.

    Args:
        checkpoint: see `CLIPReward`.
        name: name under which the scores are reported.
        processor: see `CLIPReward`.
        gradient_checkpointing: see `CLIPReward`.
        max_batch_size: the largest number of images in one call of the towers; None for all at once.
        device: device of the model; images are moved to it.
        dtype: dtype of the two towers.
        hub_options: see `CLIPReward`.
    """

    tower: CLIPTower
    model: Any

    def __init__(
        self,
        checkpoint: str | PathLike[str],
        *,
        name: str,
        processor: str | PathLike[str] | None = None,
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        self.name = name
        self.max_batch_size = max_batch_size
        self._use(load_clip(name, checkpoint, processor, device or "cpu", dtype, hub_options))
        self.preprocessing: Preprocessing = self.tower.preprocessing
        if gradient_checkpointing:
            self.tower.checkpoint_layers()

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features `[B, D]` of images `[B, 3, H, W]` in [0, 1], on the model's device, with their graph."""
        return self.tower.image_features(images, self.preprocessing)

    def shared_image_features(self, images: Tensor) -> Tensor:
        """`image_features`, computed once for all terms of a sum that use the same tower."""
        return features_of(images, self.image_features, self.tower, self.preprocessing)

    def compile(self, **options: Any) -> Self:
        """Compiles the image tower as `torch.compile` does, for all rewards that share it; returns the reward."""
        self.tower.image_module.compile(**options)
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward. Rewards that shared its tower are not affected."""
        self._use(self.tower.on(device, dtype))
        return self

    def _use(self, tower: CLIPTower) -> None:
        if hasattr(self, "tower"):
            self.tower.users.discard(self)
        tower.users.add(self)
        self.tower = tower
        self.model = tower.model
