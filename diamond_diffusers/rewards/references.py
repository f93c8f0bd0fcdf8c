"""Closeness to reference images: perceptual distance, or likeness of a vision model's features."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal, Self

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel

from .base import Reward
from .checkpointing import checkpoint_layers
from .clip_tower import at_least_float32
from .errors import first_line
from .hub import check_hub_options
from .preprocessing import ImagePreprocessing, images_from_pil, resize_like_pil
from .registry import register_reward

References = Tensor | Image | Sequence[Image]


@register_reward("lpips")
class LPIPSReward(Reward):
    """Minus the LPIPS distance to the reference image, averaged over the references where there are several.

    References are resized to the images' size. Needs the package `lpips`.

    Args:
        references: a tensor `[3, H, W]` or `[R, 3, H, W]` in [0, 1], a PIL image, or several of one size.
        network: whose features are compared.
        backbone: a local file with torchvision's ImageNet weights of the network; by default torchvision's cache,
            into which they are downloaded where they are missing.
        name: under which the scores are reported.
        max_batch_size: the most images of one call of the network; None for all at once.
        device: of the network.

    Raises:
        ImportError: `lpips` is not installed.
        OSError: the backbone's weights cannot be read.
        ValueError: the references or `network` are malformed.

    Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".
    """

    licence = "BSD-2-Clause (backbones: BSD-3-Clause)"
    source = "Zhang et al. 2018, arXiv:1801.03924"
    size = "0.2 GB (alex), 0.5 GB (vgg), 5 MB (squeeze)"
    requires = ("lpips",)
    reads_prompts = False

    def __init__(
        self,
        references: References,
        *,
        network: Literal["alex", "vgg", "squeeze"] = "vgg",
        backbone: str | PathLike[str] | None = None,
        name: str = "lpips",
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if network not in ("alex", "vgg", "squeeze"):
            raise ValueError(f"Reward '{name}' got network={network!r}; choose 'alex', 'vgg' or 'squeeze'.")
        self.name = name
        self.max_batch_size = max_batch_size
        self.references = read_references(name, references)
        self.model = _load_lpips(name, network, backbone).eval().requires_grad_(False)
        self.to(device)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Minus the mean distances `[B]` of images `[B, 3, H, W]` in [0, 1]; 0 where they equal the reference."""
        weight = next(self.model.parameters())
        images = at_least_float32(images.to(weight.device))
        references = resize_like_pil(self.references, tuple(images.shape[-2:])).to(images)
        distances = [self.model(images, reference.expand_as(images), normalize=True) for reference in references]
        return -torch.stack(distances).flatten(2).mean((0, 2))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the network, in place; returns the reward. It stays in float32, in which LPIPS is defined."""
        self.model.to(device=device)
        return self


@register_reward("similarity")
class SimilarityReward(Reward):
    """Cosine of a vision model's features of the image and the reference, averaged over several references.

    Args:
        references: a tensor `[3, H, W]` or `[R, 3, H, W]` in [0, 1], a PIL image, or several of one size.
        checkpoint: of a transformers vision model such as DINOv2, DINOv3, CLIP or SigLIP: a name on the Hub or a
            local folder.
        name: under which the scores are reported.
        gradient_checkpointing: recomputes each layer in the backward pass instead of storing its activations.
        max_batch_size: the most images of one call of the model; None for all at once.
        device: of the model.
        dtype: of the model; cosines are in float32.
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
    hub_files = (("facebook/dinov2-base", "model.safetensors"),)
    reads_prompts = False

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
        self._reference_features: Tensor | None = None
        return super().to(device, dtype)


def read_references(name: str, references: References) -> Tensor:
    """Reference images `[R, 3, H, W]` in [0, 1] from any of their forms.

    Raises:
        TypeError: they are none of these.
        ValueError: there is none, or their shape or range is wrong.
    """
    if not isinstance(references, Tensor):
        pictures = [references] if isinstance(references, Image) else list(references)
        if not all(isinstance(picture, Image) for picture in pictures):
            raise TypeError(f"Reward '{name}' got references={references!r}; give a tensor or PIL images.")
        return images_from_pil(pictures)
    stacked = references[None] if references.ndim == 3 else references
    if stacked.ndim != 4 or stacked.shape[1] != 3 or not len(stacked) or not stacked.is_floating_point():
        raise ValueError(
            f"Reward '{name}' got references of shape {list(references.shape)} and {references.dtype}; give a floating "
            "tensor [3, H, W] or [R, 3, H, W]."
        )
    if stacked.min() < 0 or stacked.max() > 1:
        raise ValueError(
            f"Reward '{name}' got references from {stacked.min():.3g} to {stacked.max():.3g}; scale them to [0, 1]."
        )
    return at_least_float32(stacked.detach())


def _load_lpips(name: str, network: str, backbone: str | PathLike[str] | None) -> nn.Module:
    try:
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError(
            f"Reward '{name}' needs the package 'lpips', which does not import here ({first_line(error)}); "
            "install it with `pip install diamond-diffusers[lpips]`."
        ) from error
    with warnings.catch_warnings():
        # It calls torchvision by an interface of old.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        try:
            model = lpips.LPIPS(net=network, pnet_rand=backbone is not None, verbose=False)
            if backbone is not None:
                _load_backbone(model.net, torch.load(backbone, map_location="cpu", weights_only=True))
        except Exception as error:
            raise OSError(
                f"Reward '{name}' cannot load backbone={str(backbone)!r} of network {network!r} ({first_line(error)}); "
                "give a local file with torchvision's weights of that network."
            ) from error
    return model


def _load_backbone(slices: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads a torchvision classifier's weights into the slices that lpips cuts its features into."""
    slices.load_state_dict({key: weights["features." + key.partition(".")[2]] for key in slices.state_dict()})


def _load_vision_model(
    name: str, checkpoint: str | PathLike[str], hub_options: dict[str, Any]
) -> tuple[nn.Module, ImagePreprocessing]:
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
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"Reward '{name}' got checkpoint='{checkpoint}', which lacks {missing[0]} and {len(missing) - 1} other "
            f"weights of a {model.config.model_type}; give a complete checkpoint."
        )
    return model.eval().requires_grad_(False), ImagePreprocessing.from_processor(processor)


def _pooled(model: nn.Module, pixels: Tensor) -> Tensor:
    """One feature vector an image: the model's pooled output, projected where it was trained against texts.

    Raises:
        ValueError: the model has none.
    """
    project = getattr(model, "get_image_features", model)
    pooled = getattr(project(pixel_values=pixels), "pooler_output", None)
    if pooled is None:
        raise ValueError(
            f"The checkpoint of a {type(model).__name__} gives no pooled feature of an image; give one of a model that "
            "does, such as DINOv2, CLIP or SigLIP."
        )
    return pooled
