"""Rules on boxes, free of any model. A box is `(left, top, right, bottom)` in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

RELATIONS = ("left of", "right of", "above", "below")

_NEGLIGIBLE = 1e-3
"""Offsets in pixels that count as none."""


def direction(box: Tensor, other: Tensor, slack: float = 0.1) -> Tensor:
    """Where a box lies, seen from another: the offset of their centres in units of its length, `(right, down)`.

    Of the offset's length along each axis, `slack` times the sum of both boxes' lengths is taken off before the
    division, so that boxes which overlap much are in no relation; the result is zero where nothing remains.

    Args:
        box: `[4]`.
        other: `[4]`.
        slack: at least 0.

    Returns:
        `[2]`, each from -1 to 1, with its graph.

    Source: Ghosh et al. 2023, "GenEval", arXiv:2310.11513.
    """
    corners = torch.stack([box, other]).reshape(2, 2, 2)
    centres, lengths = corners.mean(1), (corners[:, 1] - corners[:, 0]).abs()
    offset = centres[0] - centres[1]
    remaining = (offset.abs() - slack * lengths.sum(0)).clamp(min=0) * offset.sign()
    if (remaining.abs() < _NEGLIGIBLE).all():
        return torch.zeros_like(offset)
    return remaining / torch.linalg.vector_norm(offset)


def relations(box: Tensor, other: Tensor, slack: float = 0.1) -> list[str]:
    """The relations in which a box stands to another: none, one, or two where it lies diagonally; as `direction`."""
    right, down = direction(box, other, slack).tolist()
    holds = (right < -0.5, right > 0.5, down < -0.5, down > 0.5)
    return [relation for relation, true in zip(RELATIONS, holds, strict=True) if true]


def overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union `[N]` of a box `[4]` with others `[N, 4]`, whose sides count both end pixels.

    Source: as GenEval's `compute_iou`.
    """
    inner = torch.cat([torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])], 1)
    shared = _area(inner)
    return shared / (_area(box[None]) + _area(boxes) - shared)


def _area(boxes: Tensor) -> Tensor:
    lengths = (boxes[:, 2:] - boxes[:, :2] + 1).clamp(min=0)
    return lengths[:, 0] * lengths[:, 1]
