"""From images of any size to a vision model's pixels, on tensors, so that gradients pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import center_crop, normalize, resize
from transformers import BaseImageProcessor
from transformers.image_utils import pil_torch_interpolation_mapping


@dataclass(frozen=True)
class ImagePreprocessing:
    """Resize, centre crop, normalise.

    Attributes:
        size: `[edge]` resizes the shorter edge, `[height, width]` both, None neither.
        crop_size: `[height, width]` of the central part that is kept, or None.
        mean: per channel, of images in [0, 1].
        std: per channel.
        interpolation: always antialiased.
    """

    size: list[int] | None
    crop_size: list[int] | None
    mean: list[float]
    std: list[float]
    interpolation: InterpolationMode = InterpolationMode.BICUBIC

    @classmethod
    def from_processor(cls, processor: BaseImageProcessor) -> ImagePreprocessing:
        """Reads the steps of a transformers image processor."""
        size, crop_size = processor.size, processor.crop_size
        edges = [size["shortest_edge"]] if size.get("shortest_edge") else [size["height"], size["width"]]
        return cls(
            size=edges if processor.do_resize else None,
            crop_size=[crop_size["height"], crop_size["width"]] if processor.do_center_crop else None,
            mean=list(processor.image_mean) if processor.do_normalize else [0.0, 0.0, 0.0],
            std=list(processor.image_std) if processor.do_normalize else [1.0, 1.0, 1.0],
            interpolation=pil_torch_interpolation_mapping[processor.resample],
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` in [0, 1] to pixels `[B, 3, h, w]`; an image of size `size` is not resampled."""
        resized = images if self.size is None else resize(images, self.size, self.interpolation, antialias=True)
        if resized.shape != images.shape:
            # Bicubic interpolation overshoots at edges, where an 8-bit image would saturate.
            resized = resized.clamp(0, 1)
        cropped = resized if self.crop_size is None else center_crop(resized, self.crop_size)
        return normalize(cropped, self.mean, self.std)
