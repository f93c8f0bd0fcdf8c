"""Preprocessing of images of any size for vision models, on tensors, so that gradients pass.

Vision models were trained and published with preprocessing on 8-bit PIL images. `resize_like_pil` repeats PIL's
resampling to the last bit, since a plain antialiased resize moves scores by several percent where images have hard
edges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from PIL.Image import Image, Resampling
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import crop, normalize, pad, pil_to_tensor, resize, to_pil_image

from ..core.tensors import FLOAT64_DEVICES

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# PIL keeps the weights of a resampling in fixed point.
_FIXED_POINT = 2**22


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize, centre crop, normalise, as the official pipelines do on PIL images.

    Attributes:
        size: `[edge]` resizes the shorter edge to `edge` and truncates the longer one to whole pixels;
            `[height, width]` resizes both; None resizes neither. Images that have the size already are not resampled.
        crop_size: `[height, width]` of the central part that is kept, padded with black if it is larger than the image;
            None keeps all.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel.
        interpolation: bicubic or bilinear, always antialiased.
        crop_rounding: rounding of the crop's corner if an odd number of pixels is cut: `round` as in torchvision, `int`
            as in transformers.
    """

    size: Sequence[int] | None
    crop_size: Sequence[int] | None
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    interpolation: Resampling = Resampling.BICUBIC
    crop_rounding: Callable[[float], int] = round

    @classmethod
    def from_processor(cls, processor: BaseImageProcessor) -> ImagePreprocessing:
        """Reads the steps of a transformers image processor.

        Raises:
            ValueError: the processor resamples with another filter than bicubic or bilinear.
        """
        size, crop_size = processor.size, processor.crop_size
        edges = [size["shortest_edge"]] if size.get("shortest_edge") else [size["height"], size["width"]]
        interpolation = Resampling(processor.resample)
        if processor.do_resize and interpolation not in _FILTERS:
            raise ValueError(
                f"The image processor {type(processor).__name__} has resample={interpolation.name}; "
                "only BICUBIC and BILINEAR are supported."
            )
        return cls(
            size=edges if processor.do_resize else None,
            crop_size=[crop_size["height"], crop_size["width"]] if processor.do_center_crop else None,
            mean=list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
            std=list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
            interpolation=interpolation,
            crop_rounding=int,
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` in [0, 1], float32 or wider, to pixels `[B, 3, h, w]` of their dtype."""
        height, width = images.shape[-2:]
        resized = resize_like_pil(images, self._target_size(height, width), self.interpolation)
        return normalize(self._crop(resized), list(self.mean), list(self.std))

    def _target_size(self, height: int, width: int) -> tuple[int, int]:
        if self.size is None:
            return height, width
        if len(self.size) == 2:
            return self.size[0], self.size[1]
        (edge,) = self.size
        shorter = min(height, width)
        return int(edge * height / shorter), int(edge * width / shorter)

    def _crop(self, images: Tensor) -> Tensor:
        if self.crop_size is None:
            return images
        corner = [
            self.crop_rounding((length - kept) / 2)
            for length, kept in zip(images.shape[-2:], self.crop_size, strict=True)
        ]
        return crop(images, *corner, *self.crop_size)


@dataclass(frozen=True)
class LongestSidePadding:
    """HPSv2's own preprocessing: resizes the longer side to `edge`, pads the rest with black, and normalises.

    Resampling is antialiased bicubic in floating point, without rounding or clamping, as in hpsv2 1.2.0 with
    torchvision 0.17 or newer (Wu et al. 2023, arXiv:2306.09341).
    """

    edge: int
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` in [0, 1], float32 or wider, to pixels `[B, 3, edge, edge]` of their dtype."""
        scale = self.edge / max(images.shape[-2:])
        height, width = (max(1, round(length * scale)) for length in images.shape[-2:])
        if scale != 1:
            images = resize(images, [height, width], InterpolationMode.BICUBIC, antialias=True)
        top, left = (self.edge - height) // 2, (self.edge - width) // 2
        padded = pad(images, [left, top, self.edge - width - left, self.edge - height - top])
        return normalize(padded, list(self.mean), list(self.std))


def resize_like_pil(images: Tensor, size: tuple[int, int], interpolation: Resampling = Resampling.BICUBIC) -> Tensor:
    """Resamples with PIL's antialiased filter; for 8-bit images the result is that of Pillow up to 12, bit for bit.

    Pillow 13 differs by a rounding if the height shrinks by more than twice as many pixels as the width, since it then
    resamples rows first.

    Images are rounded to 8 bits, as if they had been saved; then columns are resampled, then rows, and each time
    values saturate and are rounded again. The gradient passes the roundings as if they were not there, and is zero
    where values saturate. Images of the right size are returned as they are.

    Args:
        images: `[..., H, W]` in [0, 1], floating.
        size: height and width.
        interpolation: bicubic or bilinear.

    Returns:
        `[..., *size]` in [0, 1], of the images' dtype.
    """
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    # In float64 the sums of 8-bit values times fixed-point weights are exact, in any order, on any device that has it.
    place = images.device if images.device.type in FLOAT64_DEVICES else "cpu"
    levels = _saturate_and_round(images.to(place).double() * 255)
    for length in reversed(size):
        # The second turn resamples the rows and restores the order of the axes.
        levels = _resample_last(levels, length, interpolation).mT
    return (levels / 255).to(images.dtype).to(images.device)


def images_from_pil(images: Sequence[Image]) -> Tensor:
    """PIL images of one size as `[B, 3, H, W]` in [0, 1], float32; grey becomes RGB and transparency is dropped.

    Raises:
        ValueError: there is no image, their sizes differ, or one has more than 8 bits per channel.
    """
    for image in images:
        # PIL would cut such values off at 255 instead of scaling them.
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"An image has the mode '{image.mode}', of more than 8 bits; convert it to 8-bit RGB.")
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"images={sorted(sizes)} (width, height) are not of one size; score each size on its own.")
    return torch.stack([pil_to_tensor(image.convert("RGB")) for image in images]).float() / 255


def images_to_pil(images: Tensor) -> list[Image]:
    """Images `[B, 3, H, W]` in [0, 1], rounded to 8 bits, as PIL images in RGB."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [to_pil_image(image) for image in pixels]


def _resample_last(levels: Tensor, length: int, interpolation: Resampling) -> Tensor:
    if levels.shape[-1] == length:
        return levels
    weights = _resampling_weights(levels.shape[-1], length, interpolation, levels.device)
    return _saturate_and_round(levels @ weights.T)


def _saturate_and_round(levels: Tensor) -> Tensor:
    levels = levels.clamp(0, 255)
    return levels + ((levels + 0.5).floor() - levels).detach()


def _bicubic(x: Tensor) -> Tensor:
    x = x.abs()
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0.0))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


_FILTERS = {Resampling.BICUBIC: _bicubic, Resampling.BILINEAR: _bilinear}


@torch.compiler.assume_constant_result
def _resampling_weights(old_length: int, new_length: int, interpolation: Resampling, device: torch.device) -> Tensor:
    """The matrix `[new_length, old_length]` of one pass, each row a filter whose sum is 1; remembered."""
    return _compute_weights(old_length, new_length, interpolation, device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _compute_weights(old_length: int, new_length: int, interpolation: Resampling, device: torch.device) -> Tensor:
    scale = old_length / new_length
    centres = (torch.arange(new_length, dtype=torch.float64) + 0.5) * scale
    offsets = torch.arange(old_length, dtype=torch.float64) + 0.5 - centres[:, None]
    weights = _FILTERS[interpolation](offsets / max(scale, 1.0))
    weights = weights / weights.sum(1, keepdim=True) * _FIXED_POINT
    return (torch.copysign((weights.abs() + 0.5).floor(), weights) / _FIXED_POINT).to(device)
