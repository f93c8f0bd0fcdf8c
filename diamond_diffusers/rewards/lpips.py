"""Closeness to reference images by LPIPS, a perceptual distance."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ..core.tensors import at_least_float32
from .base import Reward
from .errors import first_line
from .preprocessing import resize_like_pil
from .references import References, read_references
from .registry import register_reward


@register_reward("lpips")
class LPIPSReward(Reward):
    """Minus the LPIPS distance to a reference image, or the average over several references.

    References are resized to the images' size. The reward needs the package `lpips`.

    Args:
        references: a tensor `[3, H, W]` or `[R, 3, H, W]` in [0, 1], a PIL image, or several of one size.
        network: the network whose features are compared.
        backbone: a local file with torchvision's ImageNet weights of the network; by default they are taken from
            torchvision's cache, or downloaded into it.
        name: name under which the scores are reported.
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
    default_reward_scale = 20.0
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
        height, width = images.shape[-2:]
        references = resize_like_pil(self.references, (height, width)).to(images)
        distances = [self.model(images, reference.expand_as(images), normalize=True) for reference in references]
        return -torch.stack(distances).flatten(2).mean((0, 2))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Moves the network, in place; returns the reward. It stays in float32, in which LPIPS is defined."""
        self.model.to(device=device)
        return self


def _load_lpips(name: str, network: str, backbone: str | PathLike[str] | None) -> nn.Module:
    try:
        lpips = importlib.import_module("lpips")
    except ImportError as error:
        raise ImportError(
            f"Reward '{name}' needs the package 'lpips', which cannot be imported ({first_line(error)}); "
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
