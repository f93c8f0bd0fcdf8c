"""Reference images, with which rewards compare images."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image
from torch import Tensor

from ..core.tensors import at_least_float32
from .preprocessing import images_from_pil

References = Tensor | Image | Sequence[Image]


def read_references(name: str, references: References) -> Tensor:
    """Reference images `[R, 3, H, W]` in [0, 1] from any of their forms.

    Raises:
        TypeError: they have none of these forms.
        ValueError: there is no image, or the shape or range is wrong.
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
