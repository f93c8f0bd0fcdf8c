"""Degradations `A` of inverse problems `y = A x + noise`, such as blur, gaps and compression.

Each degradation is a callable that maps images `[B, 3, H, W]` in [0, 1] to a measurement, and passes gradients. Linear
degradations also have an adjoint.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from .formulas import check_jpeg_quality, encode_jpeg, luminance
from .preprocessing import images_from_pil, images_to_pil


class LinearOperator(ABC):
    """A linear map of images. Subclasses define it in `__call__`."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """Maps images `[B, 3, H, W]` to measurements `[B, c, h, w]`.

        Raises:
            ValueError: images of this size cannot be mapped.
        """

    def adjoint(self, measurements: Tensor, image_shape: Sequence[int]) -> Tensor:
        """Maps measurements `[B, c, h, w]` to images of shape `image_shape`: `<A x, y> = <x, A* y>` for all x and y."""
        with torch.inference_mode(False), torch.enable_grad():
            origin = torch.zeros(*image_shape, dtype=measurements.dtype, device=measurements.device).requires_grad_()
            (image,) = torch.autograd.grad(self(origin), origin, measurements)
        return image


class Inpainting(LinearOperator):
    """Keeps the pixels where the mask is 1 and blackens the others.

    Args:
        mask: `[H, W]` of zeros and ones.

    Raises:
        ValueError: the mask has another shape or other values.
    """

    def __init__(self, mask: Tensor) -> None:
        if mask.ndim != 2:
            raise ValueError(f"mask has shape {list(mask.shape)}; give [H, W].")
        if not ((mask == 0) | (mask == 1)).all():
            raise ValueError("mask has values other than 0 and 1; give 1 where the pixel is known and 0 elsewhere.")
        self.mask = mask

    def __call__(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` of the mask's size, with holes."""
        if images.shape[-2:] != self.mask.shape:
            raise ValueError(
                f"mask has shape {list(self.mask.shape)}, but images have shape {list(images.shape)}; "
                "give a mask of the images' size."
            )
        return images * self.mask.to(images)


class SuperResolution(LinearOperator):
    """Reduces both sides by a whole factor with antialiased bicubic interpolation, unclamped.

    Args:
        factor: 2 or more; the images' sides are multiples of it.

    Raises:
        ValueError: the factor is too small.
    """

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise ValueError(f"factor={factor} does not reduce an image; give 2 or more.")
        self.factor = factor

    def __call__(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H / factor, W / factor]`."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"factor={self.factor} does not divide the images' sides {height} and {width}; give one that does."
            )
        size = (height // self.factor, width // self.factor)
        return nn.functional.interpolate(images, size, mode="bicubic", antialias=True)


class Blur(LinearOperator):
    """Convolves every channel with one kernel; the image is continued by reflection at its border.

    Args:
        kernel: `[h, w]`, both odd; its centre is the pixel itself.

    Raises:
        ValueError: the kernel has another shape.
    """

    def __init__(self, kernel: Tensor) -> None:
        if kernel.ndim != 2 or not all(side % 2 for side in kernel.shape):
            raise ValueError(f"kernel has shape {list(kernel.shape)}; give [h, w] with odd h and w.")
        self.kernel = kernel

    def __call__(self, images: Tensor) -> Tensor:
        """Blurred images `[B, 3, H, W]`."""
        up, left = (side // 2 for side in self.kernel.shape)
        if images.shape[-2] <= up or images.shape[-1] <= left:
            raise ValueError(
                f"A blur kernel of shape {list(self.kernel.shape)} reaches beyond images of shape "
                f"{list(images.shape)}; take a smaller kernel or larger images."
            )
        padded = nn.functional.pad(images, (left, left, up, up), mode="reflect")
        # `conv2d` correlates: convolution is correlation with the kernel turned around.
        kernel = self.kernel.flip(0, 1).to(images).expand(images.shape[1], 1, -1, -1)
        return nn.functional.conv2d(padded, kernel, groups=images.shape[1])


class GaussianBlur(Blur):
    """Blurs with a Gaussian.

    Args:
        std: standard deviation in pixels.

    Raises:
        ValueError: `std` is not positive.
    """

    def __init__(self, std: float) -> None:
        if not std > 0:
            raise ValueError(f"std={std} is no standard deviation in pixels; give a positive number.")
        radius = math.ceil(3 * std)
        offsets = torch.arange(-radius, radius + 1)
        profile = torch.exp(-(offsets.double() ** 2) / (2 * std**2))
        profile /= profile.sum()
        super().__init__(profile[:, None] * profile)


class MotionBlur(Blur):
    """Blurs along a straight line, as when the camera moves at constant speed while the shutter is open.

    Args:
        length: length of the line, in pixels.
        angle: angle of the line in degrees, counted anticlockwise from the horizontal.

    Raises:
        ValueError: `length` is not positive.
    """

    def __init__(self, length: float, angle: float = 0.0) -> None:
        if not length > 0:
            raise ValueError(f"length={length} is no length in pixels; give a positive number.")
        super().__init__(_line(length, math.radians(angle)))


class Grayscale(LinearOperator):
    """Keeps the luminance of ITU-R BT.601 alone."""

    def __call__(self, images: Tensor) -> Tensor:
        """Luminances `[B, 1, H, W]`."""
        return luminance(images)


class JPEG:
    """Writes the image as a JPEG file and reads it back.

    The result is the codec's; the gradient passes as if the file were lossless (straight-through), since that of a
    quantiser is zero almost everywhere.

    Args:
        quality: 1 to 95.

    Raises:
        ValueError: `quality` is out of range.
    """

    def __init__(self, quality: int) -> None:
        check_jpeg_quality(quality)
        self.quality = quality

    def __call__(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1] after compression."""
        files = [encode_jpeg(image, self.quality) for image in images_to_pil(images)]
        decoded = images_from_pil([Image.open(io.BytesIO(file)) for file in files]).to(images)
        return images + (decoded - images).detach()


def _line(length: float, angle: float) -> Tensor:
    """A centred line of total weight 1, spread bilinearly over the pixels."""
    radius = math.ceil(length / 2)
    steps = torch.linspace(-length / 2, length / 2, max(2, math.ceil(8 * length)), dtype=torch.float64)
    pixels = torch.arange(-radius, radius + 1, dtype=torch.float64)
    rows = (1 - (pixels + math.sin(angle) * steps[:, None]).abs()).clamp(min=0)
    columns = (1 - (pixels - math.cos(angle) * steps[:, None]).abs()).clamp(min=0)
    kernel = torch.einsum("nh,nw->hw", rows, columns)
    return kernel / kernel.sum()
