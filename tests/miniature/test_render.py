"""The renderer: areas, places and colours are those of the scene, and scenes satisfy their captions."""

import math
import random

import pytest
import torch

from diamond_diffusers.miniature.grammar import CATEGORIES, SHAPES, all_captions
from diamond_diffusers.miniature.judge import objects_satisfy
from diamond_diffusers.miniature.render import (
    GAP,
    IMAGE_SIZE,
    PALETTE,
    RADII,
    Scene,
    SceneObject,
    coverage,
    render,
    sample_scene,
)

STAR_AREA = 5 * 0.45 * math.sin(math.pi / 5)
# A square of side 0.75 sqrt(2) on its corner, and half a disc over each of its upper sides.
HEART_AREA = 2 * 0.75**2 + math.pi * 0.75**2 / 2
AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 4 * 0.78**2,
    "triangle": 0.95 * 1.7,
    "star": STAR_AREA,
    "heart": HEART_AREA,
    "cross": 4 * 0.95 * 0.6 - 0.6**2,
    "ring": math.pi * (0.92**2 - 0.44**2),
    "diamond": 2 * 0.72,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_area_and_is_symmetric(shape):
    radius = torch.tensor([100.0])
    mask = coverage(shape, torch.tensor([128.0]), torch.tensor([128.0]), radius, size=256)[0]
    assert mask.sum().item() / 100**2 == pytest.approx(AREAS[shape], rel=5e-3)
    torch.testing.assert_close(mask, mask.flip(1))


def test_an_image_holds_the_background_and_the_colours_of_its_objects():
    things = (SceneObject("square", "red", 16.0, 20.0, 10.0), SceneObject("circle", "cyan", 48.0, 40.0, 10.0))
    background = (0.9, 0.95, 1.0)
    image = render([Scene(things, background)])[0]
    assert image.shape == (3, IMAGE_SIZE, IMAGE_SIZE)
    torch.testing.assert_close(image[:, 0, 0], torch.tensor(background))
    torch.testing.assert_close(image[:, 20, 16], torch.tensor(PALETTE["red"]))
    torch.testing.assert_close(image[:, 40, 48], torch.tensor(PALETTE["cyan"]))


def test_a_batch_is_rendered_as_its_scenes_one_by_one():
    rng = random.Random(0)
    scenes = [sample_scene(rng.choice(all_captions(category)), rng) for category in CATEGORIES]
    torch.testing.assert_close(render(scenes), torch.cat([render([scene]) for scene in scenes]))


@pytest.mark.parametrize("category", CATEGORIES)
def test_scenes_satisfy_their_captions_and_objects_keep_apart(category):
    rng = random.Random(0)
    for _ in range(100):
        caption = rng.choice(all_captions(category))
        things = sample_scene(caption, rng).objects
        assert objects_satisfy(things, caption)
        low, high = RADII[len(things)]
        for index, thing in enumerate(things):
            assert low <= thing.radius <= high
            assert all(thing.radius <= side <= IMAGE_SIZE - thing.radius for side in (thing.x, thing.y))
            for other in things[:index]:
                gap = math.dist((thing.x, thing.y), (other.x, other.y)) - thing.radius - other.radius
                assert gap >= GAP - 1e-6


def test_the_same_seed_gives_the_same_scene():
    caption = all_captions("counting")[5]
    assert sample_scene(caption, random.Random(3)) == sample_scene(caption, random.Random(3))
    assert sample_scene(caption, random.Random(3)) != sample_scene(caption, random.Random(4))
