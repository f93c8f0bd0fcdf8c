"""Heads that teach a vision tower where each object is and which colour it has; thrown away after training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diamond_diffusers.miniature.grammar import COLOURS, RELATIONS, SHAPES
from diamond_diffusers.miniature.judge import relation_holds
from diamond_diffusers.miniature.render import IMAGE_SIZE, Scene

MAX_COUNT = 4
# Nearly all of the 64 counts of a scene are zero.
COUNTS_WEIGHT = 8
PLACES_WEIGHT = 8


class SceneHeads(nn.Module):
    """Linear heads: the shape and colour at each patch, how many of each coloured shape, and who lies where.

    Who lies where is asked twice: for the mean place of each shape and of each colour, because a difference of places
    is what a relation can be read from, and for the relations themselves.

    Args:
        width: channels of the vision tower.
        grid: patches along one side of the image.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.shape = nn.Linear(width, len(SHAPES) + 1)
        self.colour = nn.Linear(width, len(COLOURS) + 1)
        self.counts = nn.Linear(width, len(SHAPES) * len(COLOURS) * (MAX_COUNT + 1))
        self.places = nn.Linear(width, (len(SHAPES) + len(COLOURS)) * 2)
        self.relations = nn.Linear(width, len(SHAPES) ** 2 * len(RELATIONS))

    def loss(self, pooled: Tensor, patches: Tensor, scenes: Sequence[Scene]) -> tuple[Tensor, dict[str, float]]:
        """Sum of the heads' cross entropies.

        Args:
            pooled: the tower's output for the whole image, `[B, width]`.
            patches: its states at the patches, `[B, grid * grid, width]`.
            scenes: what the `B` images show.
        """
        shapes, colours = patch_targets(scenes, self.grid)
        cross_entropy = nn.functional.cross_entropy
        counts = self.counts(pooled).unflatten(1, (-1, MAX_COUNT + 1)).mT
        parts = {
            "patch": cross_entropy(self.shape(patches).flatten(0, 1), shapes.flatten())
            + cross_entropy(self.colour(patches).flatten(0, 1), colours.flatten()),
            "counts": COUNTS_WEIGHT * cross_entropy(counts, count_targets(scenes)),
            "places": PLACES_WEIGHT * self._place_loss(pooled, scenes),
            "relations": self._relation_loss(pooled, scenes),
        }
        return sum(parts.values()), {name: part.item() for name, part in parts.items()}

    def _place_loss(self, pooled: Tensor, scenes: Sequence[Scene]) -> Tensor:
        places, present = place_targets(scenes)
        errors = (self.places(pooled).view_as(places) - places).square().sum(-1)
        return errors[present].mean()

    def _relation_loss(self, pooled: Tensor, scenes: Sequence[Scene]) -> Tensor:
        rows, columns, targets = relation_targets(scenes)
        logits = self.relations(pooled)[rows, columns]
        return nn.functional.binary_cross_entropy_with_logits(logits, targets) if len(targets) else logits.sum()


def patch_targets(scenes: Sequence[Scene], grid: int) -> tuple[Tensor, Tensor]:
    """Shape and colour of the object whose circle holds each patch's centre, 0 for none; each `[B, grid * grid]`."""
    cell = IMAGE_SIZE / grid
    centres = (torch.arange(grid) + 0.5) * cell
    y, x = (axis.flatten() for axis in torch.meshgrid(centres, centres, indexing="ij"))
    entries = [(row, thing) for row, scene in enumerate(scenes) for thing in scene.objects]
    rows = torch.tensor([row for row, _ in entries])
    place = torch.tensor([[thing.x, thing.y, thing.radius] for _, thing in entries])
    kinds = torch.tensor([[SHAPES.index(thing.shape) + 1, COLOURS.index(thing.colour) + 1] for _, thing in entries])
    inside = torch.hypot(x - place[:, :1], y - place[:, 1:2]) <= place[:, 2:]
    # Circles of a scene are disjoint, so that a sum over its objects picks the only one.
    targets = torch.zeros(2, len(scenes), grid * grid, dtype=torch.long)
    targets.index_add_(1, rows, kinds.T[:, :, None] * inside)
    return targets[0], targets[1]


def count_targets(scenes: Sequence[Scene]) -> Tensor:
    """How many objects of each shape and colour a scene holds, `[B, shapes * colours]`."""
    counts = torch.zeros(len(scenes), len(SHAPES) * len(COLOURS), dtype=torch.long)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            counts[row, SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour)] += 1
    return counts


def place_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Mean centre of the objects of each shape, then of each colour, in [-1, 1], `[B, shapes + colours, 2]`; and
    which of them a scene holds at all."""
    sums = torch.zeros(len(scenes), len(SHAPES) + len(COLOURS), 3)
    for row, scene in enumerate(scenes):
        for thing in scene.objects:
            place = torch.tensor([2 * thing.x / IMAGE_SIZE - 1, 2 * thing.y / IMAGE_SIZE - 1, 1.0])
            sums[row, SHAPES.index(thing.shape)] += place
            sums[row, len(SHAPES) + COLOURS.index(thing.colour)] += place
    counts = sums[..., 2:]
    return sums[..., :2] / counts.clamp(min=1), counts[..., 0] > 0


def relation_targets(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """For each ordered pair of differently shaped objects in scenes of two: row of the scene, column of (first shape,
    second shape, relation), and 1 where that relation holds."""
    rows, columns, targets = [], [], []
    for row, scene in enumerate(scenes):
        if len(scene.objects) != 2 or scene.objects[0].shape == scene.objects[1].shape:
            continue
        for first, second in (scene.objects, scene.objects[::-1]):
            pair = SHAPES.index(first.shape) * len(SHAPES) + SHAPES.index(second.shape)
            for index, relation in enumerate(RELATIONS):
                rows.append(row)
                columns.append(pair * len(RELATIONS) + index)
                targets.append(float(relation_holds(first, second, relation)))
    return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long), torch.tensor(targets)
