"""What may differ between two copies of the same weights."""

from __future__ import annotations

import torch
from torch import Tensor

COPIED = 1e-5
"""Between images in [0, 1], latents or scores of about 1."""


def assert_same_from_a_copy(found: Tensor, expected: Tensor) -> None:
    """That results of a model are those of a copy of it: loaded again, saved elsewhere, or built a second time.

    Bit for bit is promised for one pipe, whose weights stay where they are. A file has them at any multiple of its
    dtype's size, and the products of a matrix with one row are summed up in another order where the matrix does not
    begin at a multiple of 16 bytes: on an AMD EPYC, float32 latents of a tiny SDXL moved by 6e-6 and images by 1e-6.
    Other processors may have other such borders.
    """
    torch.testing.assert_close(found, expected, atol=COPIED, rtol=COPIED)
