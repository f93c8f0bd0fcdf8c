"""Renders scenes of the miniature world with antialiased signed distances."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .grammar import COLOURS, SHAPES, Caption, relation_offset, sample_training_caption

IMAGE_SIZE = 64

PALETTE = {
    "red": (0.86, 0.08, 0.12),
    "orange": (1.00, 0.55, 0.00),
    "yellow": (0.98, 0.90, 0.10),
    "green": (0.10, 0.60, 0.20),
    "cyan": (0.10, 0.80, 0.90),
    "blue": (0.10, 0.25, 0.90),
    "purple": (0.55, 0.10, 0.75),
    "black": (0.05, 0.05, 0.05),
}

# Circumradius in pixels, lowest and highest, by the number of objects in the scene.
RADII = {1: (10.0, 19.0), 2: (9.5, 13.0), 3: (9.0, 11.5), 4: (8.5, 10.5)}
GAP = 2.5


@dataclass(frozen=True)
class SceneObject:
    """One object: centre (`x` to the right, `y` downwards) and circumradius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    objects: tuple[SceneObject, ...]
    background: tuple[float, float, float]


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 0.9


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.78


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    # Apex (0, -1), base corners (+-0.95, 0.7).
    side = (1.7 * x.abs() - 0.95 * y) / math.hypot(1.7, 0.95) - 0.95 / math.hypot(1.7, 0.95)
    return torch.maximum(y - 0.7, side)


def _star(x: Tensor, y: Tensor) -> Tensor:
    # Fold the plane onto one of ten sectors, then take the distance to the edge between an outer and an inner corner.
    sector = 2 * math.pi / 5
    angle = torch.atan2(x, -y)
    angle = (angle - sector * torch.round(angle / sector)).abs()
    radius = torch.hypot(x, y)
    px, py = radius * torch.cos(angle), radius * torch.sin(angle)
    inner_x, inner_y = 0.45 * math.cos(sector / 2), 0.45 * math.sin(sector / 2)
    length = math.hypot(1 - inner_x, inner_y)
    return ((px - 1) * inner_y + py * (1 - inner_x)) / length


def _heart(x: Tensor, y: Tensor) -> Tensor:
    # A square standing on its corner, with a circle on each of its upper sides.
    b = 0.75
    body = (x.abs() + y.abs() - b) / math.sqrt(2)
    lobe = torch.hypot(x.abs() - b / 2, y + b / 2) - b / math.sqrt(2)
    return torch.minimum(body, lobe)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.95, y - 0.3), torch.maximum(x - 0.3, y - 0.95))


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return (torch.hypot(x, y) - 0.68).abs() - 0.24


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    # Taller than wide, so that it is no turned square.
    return (x.abs() / 0.72 + y.abs() - 1.0) / math.hypot(1 / 0.72, 1.0)


SIGNED_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}


def coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """The share of each pixel that a shape covers.

    Args:
        shape: one of `SHAPES`.
        x, y, radius: centres and circumradii in pixels, `[N]`.

    Returns:
        `[N, size, size]` in [0, 1].
    """
    grid = torch.arange(size, dtype=torch.float32) + 0.5
    u = (grid[None, None, :] - x[:, None, None]) / radius[:, None, None]
    v = (grid[None, :, None] - y[:, None, None]) / radius[:, None, None]
    u, v = torch.broadcast_tensors(u, v)
    return (0.5 - SIGNED_DISTANCES[shape](u, v) * radius[:, None, None]).clamp(0, 1)


def render(scenes: Sequence[Scene], size: int = IMAGE_SIZE) -> Tensor:
    """Images `[B, 3, size, size]` in [0, 1] of `B` scenes; the objects of a scene must not overlap."""
    images = torch.tensor([scene.background for scene in scenes])[:, :, None, None].repeat(1, 1, size, size)
    entries = [(i, thing) for i, scene in enumerate(scenes) for thing in scene.objects]
    for shape in SHAPES:
        chosen = [(i, thing) for i, thing in entries if thing.shape == shape]
        if not chosen:
            continue
        rows = torch.tensor([i for i, _ in chosen])
        place = torch.tensor([[thing.x, thing.y, thing.radius] for _, thing in chosen])
        colour = torch.tensor([PALETTE[thing.colour] for _, thing in chosen])
        x, y, radius = place.unbind(1)
        alpha = coverage(shape, x, y, radius, size)[:, None]
        backgrounds = torch.tensor([scenes[i].background for i, _ in chosen])
        # Objects do not overlap, so each adds its own difference from the background.
        images.index_add_(0, rows, alpha * (colour - backgrounds)[:, :, None, None])
    return images.clamp(0, 1)


def _relation_holds(first: tuple[float, float], second: tuple[float, float], relation: str) -> bool:
    along, across = relation_offset(first[0] - second[0], first[1] - second[1], relation)
    return along >= 14.0 and abs(across) <= 0.6 * along


def _place(rng: random.Random, radii: Sequence[float], relation: str | None) -> list[tuple[float, float]] | None:
    """Centres for circles of the given radii that keep `GAP` pixels apart, or None where 60 draws did not fit."""
    centres: list[tuple[float, float]] = []
    for radius in radii:
        for _ in range(60):
            low, high = radius + 1, IMAGE_SIZE - radius - 1
            centre = (rng.uniform(low, high), rng.uniform(low, high))
            far = all(math.dist(centre, c) >= radius + r + GAP for c, r in zip(centres, radii, strict=False))
            if far and (relation is None or not centres or _relation_holds(centres[0], centre, relation)):
                centres.append(centre)
                break
        else:
            return None
    return centres


def sample_scene(caption: Caption, rng: random.Random) -> Scene:
    """A random scene that satisfies the caption: sizes, places, background and open colours vary.

    A colour that the caption leaves open is drawn once per group; where no group names a colour, the groups'
    colours may coincide.
    """
    kinds = []
    for group in caption.groups:
        colour = group.colour or rng.choice(COLOURS)
        kinds += [(group.shape, colour)] * group.count
    low, high = RADII[len(kinds)]
    centres = None
    while centres is None:
        common = rng.uniform(low, high)
        radii = [min(max(common * rng.uniform(0.9, 1.1), low), high) for _ in kinds]
        centres = _place(rng, radii, caption.relation)
    level = rng.uniform(0.82, 1.0)
    red, green, blue = (min(max(level + rng.uniform(-0.04, 0.04), 0.0), 1.0) for _ in range(3))
    objects = tuple(
        SceneObject(shape, colour, x, y, radius)
        for (shape, colour), (x, y), radius in zip(kinds, centres, radii, strict=True)
    )
    return Scene(objects, (red, green, blue))


def sample_world(rng: random.Random, count: int, with_single_objects: bool = True) -> tuple[list[Caption], list[Scene]]:
    """`count` training captions, each with a scene that satisfies it."""
    captions = [sample_training_caption(rng, with_single_objects) for _ in range(count)]
    return captions, [sample_scene(caption, rng) for caption in captions]
