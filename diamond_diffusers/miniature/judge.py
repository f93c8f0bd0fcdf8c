"""Decides from pixels alone whether an image of the miniature world satisfies its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .grammar import SHAPES, Caption, ObjectGroup, parse_caption, relation_offset
from .render import IMAGE_SIZE, PALETTE, coverage

# Two objects stand in a relation when their centres differ by this much along its axis, and by less across it.
MIN_SEPARATION = 0.12 * IMAGE_SIZE

UNKNOWN = "unknown"
# Distances between RGB values in [0, 1]: a pixel belongs to some object, or has a palette colour, or its object has.
FOREGROUND_DISTANCE = 0.3
PIXEL_COLOUR_DISTANCE = 0.25
OBJECT_COLOUR_DISTANCE = 0.3
# A colour with a smaller share of the clear pixels in a connected area belongs to an outline.
MIN_COLOUR_SHARE = 0.2
# In pixels: how far an antialiased or blurred outline reaches.
RIM_WIDTH = 3
# In pixels; the smallest object, a star, covers 95.
MIN_AREA = 16.0
# Soft intersection over union with the best template.
MIN_MATCH = 0.8
# Images whose objects are matched together.
CHUNK = 32

COLOUR_NAMES = tuple(PALETTE)
COLOUR_VALUES = np.array(list(PALETTE.values()), dtype=np.float32)


class PlacedObject(Protocol):
    """What the judge needs to know of an object: centre in pixels of a 64x64 image, `y` downwards."""

    @property
    def shape(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


@dataclass(frozen=True)
class DetectedObject:
    """An object found in an image; `shape` or `colour` is `UNKNOWN` where nobody could name it.

    Attributes:
        x, y, radius: of the fitted shape, in pixels of a 64x64 image, `y` downwards.
        match: soft intersection over union with the fitted shape.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    match: float


def relation_holds(first: PlacedObject, second: PlacedObject, relation: str) -> bool:
    """Whether `first` lies to `second` as `relation` says."""
    along, across = relation_offset(first.x - second.x, first.y - second.y, relation)
    return along >= MIN_SEPARATION and along > abs(across)


def objects_satisfy(objects: Sequence[PlacedObject], caption: Caption) -> bool:
    """Whether the objects are exactly those of the caption, nothing missing and nothing else, placed as it says."""
    if len(objects) != caption.num_objects:
        return False
    members = [_members(objects, group) for group in caption.groups]
    if any(len(found) != group.count for found, group in zip(members, caption.groups, strict=True)):
        return False
    return caption.relation is None or relation_holds(members[0][0], members[1][0], caption.relation)


def _members(objects: Sequence[PlacedObject], group: ObjectGroup) -> list[PlacedObject]:
    return [thing for thing in objects if thing.shape == group.shape and group.colour in (None, thing.colour)]


def judge(images: Tensor, captions: Sequence[Caption | str]) -> Tensor:
    """Whether each image satisfies its caption.

    Args:
        images: `[B, 3, H, W]` in [0, 1]; resized to 64x64 where they are not.
        captions: one per image.

    Returns:
        Booleans `[B]` on the device of `images`.

    Raises:
        ValueError: the numbers of images and captions differ, or a text is no caption of the grammar.
    """
    if len(images) != len(captions):
        raise ValueError(f"images are {len(images)} and captions {len(captions)}; give one caption per image")
    parsed = [parse_caption(caption) if isinstance(caption, str) else caption for caption in captions]
    verdicts = [objects_satisfy(found, caption) for found, caption in zip(detect_all(images), parsed, strict=True)]
    return torch.tensor(verdicts, dtype=torch.bool, device=images.device)


def detect_objects(image: Tensor) -> list[DetectedObject]:
    """The objects in one image `[3, H, W]` in [0, 1]; see `detect_all`."""
    return detect_all(image[None])[0]


def detect_all(images: Tensor) -> list[list[DetectedObject]]:
    """The objects in each of `B` images `[B, 3, H, W]` in [0, 1]; specks are overlooked, junk comes as unknown."""
    images = images.detach().float().cpu()
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        images = torch.nn.functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
    return [objects for chunk in images.split(CHUNK) for objects in _detect_chunk(chunk)]


def _detect_chunk(images: Tensor) -> list[list[DetectedObject]]:
    regions = [_find_regions(image) for image in images.permute(0, 2, 3, 1).numpy()]
    fits = iter(_fit_shapes([alpha for found in regions for alpha, _ in found]))
    return [[_name(next(fits), colour) for _, colour in found] for found in regions]


def _name(fit: tuple[str, float, float, float, float], colour: str) -> DetectedObject:
    shape, x, y, radius, match = fit
    return DetectedObject(shape if match >= MIN_MATCH else UNKNOWN, colour, x, y, radius, match)


def _find_regions(image: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Coverage mask `[H, W]` and colour of each object in an image `[H, W, 3]`."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = np.median(border, axis=0)
    difference = image - background
    foreground = np.linalg.norm(difference, axis=-1) > FOREGROUND_DISTANCE
    if not foreground.any():
        return []
    labels, count = _label_by_colour(image, background, foreground)
    regions = []
    for index, window in enumerate(ndimage.find_objects(labels, count), start=1):
        rows, columns = (slice(max(0, side.start - RIM_WIDTH), side.stop + RIM_WIDTH) for side in window)
        mask = labels[rows, columns] == index
        if mask.sum() < MIN_AREA / 2:
            continue
        reach = ndimage.binary_dilation(mask, iterations=RIM_WIDTH) & ((labels[rows, columns] == 0) | mask)
        local = difference[rows, columns]
        core = _core_colour(local, mask)
        alpha = np.zeros(image.shape[:2], dtype=np.float32)
        # Steeper than measured, so that a blurred outline matches as a sharp one does.
        alpha[rows, columns] = np.clip(2 * (local @ core) / (core @ core) - 0.5, 0, 1) * reach
        if alpha.sum() >= MIN_AREA:
            regions.append((alpha, _nearest_colour(core + background)))
    return regions


def _label_by_colour(image: np.ndarray, background: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the connected areas of one palette colour; a pixel between colours goes with the nearest clear one."""
    classes = _clear_classes(image, foreground)
    if classes.any():
        away, (rows, columns) = ndimage.distance_transform_edt(classes == 0, return_indices=True)
        classes = classes[rows, columns]
        # Blurred rims of close neighbours run into each other below half of their colour.
        colour = COLOUR_VALUES[classes - 1] - background
        alpha = ((image - background) * colour).sum(-1) / np.square(colour).sum(-1)
        foreground = foreground & ((alpha > 0.5) | (away > RIM_WIDTH))
    labels, count = np.zeros(foreground.shape, dtype=np.int64), 0
    for value in np.unique(classes[foreground]):
        of_class, found = ndimage.label(foreground & (classes == value))
        labels[of_class > 0] = of_class[of_class > 0] + count
        count += found
    return labels, count


def _clear_classes(image: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Which palette colour (from 1) a pixel clearly has; 0 for none, or for one that is marginal where it lies."""
    distances = np.linalg.norm(image[foreground][:, None] - COLOUR_VALUES, axis=-1)
    values = np.where(distances.min(1) < PIXEL_COLOUR_DISTANCE, distances.argmin(1) + 1, 0)
    areas, count = ndimage.label(foreground)
    areas = areas[foreground]
    # The soft rim of an orange star is yellow, and no second star.
    votes = np.zeros((count + 1, len(COLOUR_NAMES) + 1))
    np.add.at(votes, (areas[values > 0], values[values > 0]), 1)
    marginal = votes < MIN_COLOUR_SHARE * votes.sum(1, keepdims=True)
    classes = np.zeros(foreground.shape, dtype=np.int64)
    classes[foreground] = np.where(marginal[areas, values], 0, values)
    return classes


def _core_colour(difference: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Median difference `[3]` from the background over the pixels of a region that differ most."""
    values = difference[mask]
    strength = np.linalg.norm(values, axis=-1)
    return np.median(values[strength >= np.quantile(strength, 0.5)], axis=0)


def _nearest_colour(value: np.ndarray) -> str:
    distances = np.linalg.norm(COLOUR_VALUES - value, axis=-1)
    return COLOUR_NAMES[distances.argmin()] if distances.min() < OBJECT_COLOUR_DISTANCE else UNKNOWN


def _fit_shapes(alphas: Sequence[np.ndarray]) -> list[tuple[str, float, float, float, float]]:
    """Best shape of each coverage mask `[H, W]`, with its centre, radius and match.

    Each shape is tried at the one place and size where its area and its centroid are those of the mask.
    """
    if not alphas:
        return []
    masks = torch.from_numpy(np.stack(alphas))
    grid = torch.arange(IMAGE_SIZE) + 0.5
    area = masks.sum((1, 2))
    x, y = (masks.sum(1) @ grid) / area, (masks.sum(2) @ grid) / area
    fits = []
    for shape in SHAPES:
        unit_area, unit_y = _unit_moments(shape)
        radius = (area / unit_area).sqrt()
        centre_y = y - unit_y * radius
        template = coverage(shape, x, centre_y, radius)
        match = torch.minimum(masks, template).sum((1, 2)) / torch.maximum(masks, template).sum((1, 2))
        fits.append(torch.stack([x, centre_y, radius, match]))
    best = torch.stack(fits)
    chosen = best[:, 3].argmax(0)
    return [(SHAPES[k], *best[k, :, i].tolist()) for i, k in enumerate(chosen.tolist())]


@cache
def _unit_moments(shape: str) -> tuple[float, float]:
    """Area and height of the centroid of a shape of radius 1; all shapes are symmetric from left to right."""
    radius = torch.tensor([400.0])
    mask = coverage(shape, torch.tensor([512.0]), torch.tensor([512.0]), radius, size=1024)[0]
    heights = torch.arange(1024) + 0.5 - 512.0
    return (mask.sum() / radius**2).item(), (mask.sum(1) @ heights / mask.sum() / radius).item()
