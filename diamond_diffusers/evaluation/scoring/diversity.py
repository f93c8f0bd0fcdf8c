"""The diversity of the images of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from ...files.foreign_images import load_image
from ...rewards.clip import CLIPBasedReward


def mean_pairwise_distance(features: Tensor) -> Tensor:
    """The mean of `1 - cosine` over all pairs of unit features `[n, D]`, n at least 2; a scalar."""
    count = len(features)
    # Over ordered pairs; the sum of the cosines of each with itself is the count.
    cosines = features.sum(0).square().sum()
    return 1 - (cosines - count) / (count * (count - 1))


@torch.no_grad()
def diversities(
    clip: CLIPBasedReward,
    images: Mapping[int, Sequence[Path]],
    batch_size: int = 64,
    remedy: str = "draw it again",
) -> list[float]:
    """`mean_pairwise_distance` of the images of each prompt, in the space of a CLIP.

    Args:
        images: the files of each prompt's images, all of one size; prompts with a single image are left out.
        batch_size: number of images in one call of the CLIP.
        remedy: advice for the user if an image is damaged.

    Raises:
        ForeignFileError: a file cannot be read as an image.
    """
    several = [paths for paths in images.values() if len(paths) > 1]
    flat = [path for paths in several for path in paths]
    features = [_features(clip, flat[start : start + batch_size], remedy) for start in range(0, len(flat), batch_size)]
    if not several:
        return []
    parts = torch.cat(features).split([len(paths) for paths in several])
    return [mean_pairwise_distance(part).item() for part in parts]


def _features(clip: CLIPBasedReward, paths: Sequence[Path], remedy: str) -> Tensor:
    images = []
    for path in paths:
        images.append(pil_to_tensor(load_image(path, remedy).convert("RGB")).float() / 255)
    return clip.image_features(torch.stack(images)).cpu().double()
