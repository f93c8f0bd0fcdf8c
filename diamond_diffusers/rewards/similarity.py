"""Closeness to reference images by the features of a vision model."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..core.tensors import at_least_float32
from .base import Reward
from .checkpointing import checkpoint_layers
from .errors import first_line
from .hub import check_hub_options
from .preprocessing import ImagePreprocessing
from .references import References, read_references
from .registry import register_reward
from .weight_files import counted_weights


@register_reward("similarity")
class SimilarityReward(Reward):
    """Cosine between a vision model's features of the image and of a reference, or its average over several references.

    Args:
        references: a tensor `[3, H, W]` or `[R, 3, H, W]` in [0, 1], a PIL image, or several of one size.
        checkpoint: a transformers vision model such as DINOv2, DINOv3, CLIP or SigLIP, by name on the Hub or as a local
            folder.
        name: name under which the scores are reported.
        gradient_checkpointing: recomputes each layer in the backward pass instead of storing its activations.
        max_batch_size: the largest number of images in one call of the model; None for all at once.
        device: device of the model.
        dtype: dtype of the model; cosines are in float32.
        hub_options: forwarded to `from_pretrained`, see `CLIPReward`.

    Raises:
        OSError: the checkpoint cannot be found or read.
        TypeError: an option is unknown.
        ValueError: the references are malformed, or the checkpoint is no vision model.

    Source: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision".
    """

    licence = "that of the checkpoint (DINOv2: Apache-2.0)"
    source = "Oquab et al. 2023, arXiv:2304.07193"
    size = "0.4 GB"
    default_reward_scale = 20.0
    hub_files = (("facebook/dinov2-base", "model.safetensors"),)
    reads_prompts = False
    _reference_features: Tensor | None = None

    def __init__(
        self,
        references: References,
        checkpoint: str | PathLike[str] = "facebook/dinov2-base",
        *,
        name: str = "similarity",
        gradient_checkpointing: bool = False,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        **hub_options: Any,
    ) -> None:
        self.name = name
        self.max_batch_size = max_batch_size
        self.references = read_references(name, references)
        check_hub_options(name, hub_options)
        self.model, self.preprocessing = _load_vision_model(name, checkpoint, hub_options)
        if gradient_checkpointing:
            checkpoint_layers(self.model)
        self.to(device, dtype)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean cosines `[B]` of images `[B, 3, H, W]` in [0, 1]."""
        if self._reference_features is None:
            # Not as inference tensors, which no later graph could hold.
            with torch.inference_mode(False), torch.no_grad():
                self._reference_features = self.image_features(self.references)
        return (self.image_features(images) @ self._reference_features.T).mean(1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features `[B, D]` of images `[B, 3, H, W]` in [0, 1], on the model's device, with their graph."""
        pixels = self.preprocessing(at_least_float32(images.to(self.model.device))).to(self.model.dtype)
        features = at_least_float32(_pooled(self.model, pixels))
        return nn.functional.normalize(features, dim=-1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves and casts the model, in place; returns the reward."""
        self._reference_features = None
        return super().to(device, dtype)


def _load_vision_model(
    name: str, checkpoint: str | PathLike[str], hub_options: dict[str, Any]
) -> tuple[Any, ImagePreprocessing]:
    from transformers import AutoImageProcessor, AutoModel

    try:
        model, report = AutoModel.from_pretrained(
            checkpoint, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **hub_options
        )
        processor = AutoImageProcessor.from_pretrained(checkpoint, **hub_options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"Reward '{name}' cannot load checkpoint='{checkpoint}' ({first_line(error)}); give a name on the Hub, or "
            "a folder with a vision model in safetensors and its image processor."
        ) from error
    if report["missing_keys"]:
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}', which lacks {counted_weights(report['missing_keys'])} "
            f"of a {model.config.model_type}; give a complete checkpoint."
        )
    return model.eval().requires_grad_(False), ImagePreprocessing.from_processor(processor)


def _pooled(model: nn.Module, pixels: Tensor) -> Tensor:
    """One feature vector for each image: the model's pooled output, projected if it was trained with texts.

    Raises:
        ValueError: the model has no pooled output.
    """
    project = getattr(model, "get_image_features", model)
    pooled = getattr(project(pixel_values=pixels), "pooler_output", None)
    if pooled is None:
        raise ValueError(
            f"The checkpoint of a {type(model).__name__} returns no pooled image feature; give one of a model that "
            "does, such as DINOv2, CLIP or SigLIP."
        )
    return pooled
