"""The judge: right on true renders, clean or soft, and as right on renders of captions that are almost true."""

import random

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from benchmarks.miniature.hard_negatives import KINDS, hard_negatives, true_captions
from diamond_diffusers.miniature.grammar import CATEGORIES, SHAPES, all_captions, parse_caption
from diamond_diffusers.miniature.judge import MIN_SEPARATION, UNKNOWN, detect_objects, judge, objects_satisfy
from diamond_diffusers.miniature.render import PALETTE, Scene, SceneObject, render, sample_scene, sample_world

BACKGROUND = (0.95, 0.93, 0.97)
NUM_SCENES = 300


def thing(shape, colour, x, y, radius=10.0):
    return SceneObject(shape, colour, float(x), float(y), radius)


@pytest.fixture(scope="module")
def world():
    captions, scenes = sample_world(random.Random(11), NUM_SCENES)
    return captions, scenes, render(scenes)


def test_objects_are_found_where_they_are(world):
    _, scenes, images = world
    for scene, image in zip(scenes[:100], images, strict=False):
        found = detect_objects(image)
        assert len(found) == len(scene.objects)
        for true in scene.objects:
            nearest = min(found, key=lambda other: abs(other.x - true.x) + abs(other.y - true.y))
            assert (nearest.shape, nearest.colour) == (true.shape, true.colour)
            assert [nearest.x, nearest.y] == pytest.approx([true.x, true.y], abs=0.5)
            assert nearest.radius == pytest.approx(true.radius, rel=0.05)


def test_true_renders_are_right(world):
    captions, _, images = world
    assert judge(images, captions).float().mean() > 0.995


def test_true_renders_stay_right_when_soft_and_noisy(world):
    captions, _, images = world
    torch.manual_seed(0)
    soft = gaussian_blur(images, [5, 5], [0.6, 0.6]) + 0.02 * torch.randn_like(images)
    assert judge(soft.clamp(0, 1), captions).float().mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_renders_of_hard_negatives_are_wrong(kind):
    rng = random.Random(12)
    captions, scenes = [], []
    while len(captions) < 100:
        caption = rng.choice(all_captions(rng.choice(CATEGORIES)))
        negatives = hard_negatives(caption, sample_scene(caption, rng).objects).get(kind, [])
        partner = sample_scene(rng.choice(negatives), rng) if negatives else None
        # A caption with open colours or without a relation may be true of its negative's other scenes.
        if partner is not None and not objects_satisfy(partner.objects, caption):
            captions.append(caption)
            scenes.append(partner)
    assert not judge(render(scenes), captions).any()


def test_hard_negatives_are_false_and_true_captions_true():
    captions, scenes = sample_world(random.Random(13), 200)
    seen = set()
    for caption, scene in zip(captions, scenes, strict=True):
        assert caption in true_captions(scene.objects, caption)
        assert all(objects_satisfy(scene.objects, true) for true in true_captions(scene.objects, caption))
        for kind, negatives in hard_negatives(caption, scene.objects).items():
            seen.add(kind)
            assert not any(objects_satisfy(scene.objects, negative) for negative in negatives)
    assert seen == set(KINDS)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a star left of a ring", True),
        ("a ring right of a star", True),
        ("a red star and a blue ring", True),
        ("a ring and a star", True),
        ("a star above a ring", False),
        ("a blue star and a red ring", False),
        ("a star", False),
        ("a red star", False),
    ],
)
def test_objects_must_be_those_of_the_caption(text, holds):
    things = [thing("star", "red", 15, 30), thing("ring", "blue", 45, 40)]
    assert objects_satisfy(things, parse_caption(text)) is holds


@pytest.mark.parametrize(
    ("dx", "dy", "holds"),
    [(-MIN_SEPARATION - 0.1, 0, True), (-MIN_SEPARATION + 0.1, 0, False), (-20, 19, True), (-20, 21, False)],
)
def test_a_relation_needs_distance_along_its_axis(dx, dy, holds):
    things = [thing("star", "red", 32 + dx, 32 + dy), thing("ring", "blue", 32, 32)]
    assert objects_satisfy(things, parse_caption("a star left of a ring")) is holds


def test_an_empty_image_shows_nothing():
    image = torch.full((3, 64, 64), 0.9)
    assert detect_objects(image) == []
    assert not judge(image[None], ["a circle"])


def test_specks_are_overlooked_and_junk_is_not():
    image = render([Scene((thing("circle", "red", 20, 20),), BACKGROUND)])
    speck, junk = image.clone(), image.clone()
    speck[:, :, 50:53, 50:53] = 0.4
    junk[:, :, 45:56, 40:58] = torch.tensor([0.6, 0.5, 0.4])[:, None, None]
    assert judge(torch.cat([image, speck, junk]), ["a red circle"] * 3).tolist() == [True, True, False]


def test_an_unreadable_shape_is_unknown():
    bar = torch.tensor(BACKGROUND)[:, None, None].repeat(1, 64, 64)
    bar[:, 28:34, 10:54] = torch.tensor(PALETTE["blue"])[:, None, None]
    assert [(found.shape, found.colour) for found in detect_objects(bar)] == [(UNKNOWN, "blue")]


def test_an_unnameable_colour_is_unknown():
    image = render([Scene((thing("square", "red", 32, 32),), BACKGROUND)])[0]
    grey = torch.where(image[1:2] < 0.5, torch.full_like(image, 0.6), image)
    assert [(found.shape, found.colour) for found in detect_objects(grey)] == [("square", UNKNOWN)]


def test_touching_objects_of_two_colours_are_two():
    things = (thing("square", "red", 22, 32), thing("square", "blue", 37.6, 32))
    found = detect_objects(render([Scene(things, BACKGROUND)])[0])
    assert sorted((one.shape, one.colour) for one in found) == [("square", "blue"), ("square", "red")]


@pytest.mark.parametrize("shape", SHAPES)
def test_other_sizes_are_resized(shape):
    scene = Scene((thing(shape, "green", 30, 33, 14.0),), BACKGROUND)
    images = torch.nn.functional.interpolate(render([scene]), scale_factor=2, mode="bilinear")
    assert judge(images, [f"a green {shape}"]).item()


def test_numbers_of_images_and_captions_must_agree():
    with pytest.raises(ValueError, match="one caption per image"):
        judge(torch.rand(2, 3, 64, 64), ["a circle"])
