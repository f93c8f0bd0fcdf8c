"""Rules on boxes, free of any model. A box is `(left, top, right, bottom)` in pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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


def agreement(towards: Tensor, relation: str) -> Tensor:
    """How well a direction, as of `direction`, fits a relation: from 0 for its opposite to 1, with its graph.

    It is 1/2 where `relations` begins to hold, and linear on both sides.
    """
    axis, sign = RELATIONS.index(relation) // 2, 2 * (RELATIONS.index(relation) % 2) - 1
    along = sign * towards[axis]
    return torch.where(along < 0.5, (along + 1) / 3, along)


def distinct(boxes: Tensor, scores: Tensor, max_overlap: float, max_objects: int) -> Tensor:
    """The indices of at most `max_objects` boxes, the highest scores first, none of which overlaps a higher one.

    Args:
        boxes: `[N, 4]`.
        scores: `[N]`.
        max_overlap: intersection over union from which two boxes show one object.
        max_objects: the largest number of boxes.
    """
    from torchvision.ops import nms

    # The CPU breaks ties alike for all devices.
    kept = nms(boxes.detach().float().cpu(), scores.detach().float().cpu(), max_overlap)
    return kept[:max_objects].to(boxes.device)


def certainty(scores: Tensor, threshold: float, sharpness: float = 2.0) -> Tensor:
    """Confidences as certainties: `sigmoid(sharpness (logit(score) - logit(threshold)))`, 1/2 at the threshold.

    Detectors leave scores of real objects far below 1, and give thousands of boxes scores a little above 0. Certainties
    are close to 1 and to 0 there, and smooth between.
    """
    logits = scores.logit(1e-6)
    return torch.sigmoid(sharpness * (logits - math.log(threshold / (1 - threshold))))


def expected_error(certainties: Tensor, number: int) -> Tensor:
    """`E |K - number|`, where `K` is how many of the boxes are objects, if each is one by its certainty, on its own.

    It is 0 only where exactly `number` certainties are 1 and the others 0.

    Args:
        certainties: `[N]`, each from 0 to 1; gradients pass.
        number: at least 0.
    """
    # Without any box, too, it has a graph.
    law = certainties.new_ones(1) + certainties[:0].sum()
    for each in certainties.unbind():
        law = nn.functional.pad(law * (1 - each), (0, 1)) + nn.functional.pad(law * each, (1, 0))
    counts = torch.arange(len(law), device=law.device)
    return (law * (counts - number).abs()).sum()
