"""Rules on drawn boxes and masks, with values by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diamond_diffusers.evaluation.suites.geneval_rules import OBJECTS
from diamond_diffusers.rewards.detection.geometry import (
    agreement,
    certainty,
    direction,
    distinct,
    expected_error,
    overlap,
    relations,
)
from diamond_diffusers.rewards.detection.reading import read_requirements
from diamond_diffusers.rewards.detection.requirements import Count, Found, Position, Presence
from diamond_diffusers.rewards.detection.segmenters import boxes_of, instances_of

SUITES = Path(__file__).parents[1] / "fixtures" / "suites"


def box(*corners):
    return torch.tensor(corners, dtype=torch.float32)


class TestGeometry:
    def test_direction(self):
        # Centres (5, 5) and (45, 35): 40 right and 30 down of it, of which a tenth of 20 and of 40 is taken off.
        one, other = box(0, 0, 10, 10), box(40, 20, 50, 50)
        torch.testing.assert_close(direction(one, other), torch.tensor([-(40 - 2) / 50, -(30 - 4) / 50]))
        torch.testing.assert_close(direction(other, one), torch.tensor([38 / 50, 26 / 50]))
        torch.testing.assert_close(direction(one, other, slack=0), torch.tensor([-0.8, -0.6]))

    def test_no_direction_within_the_slack(self):
        assert direction(box(0, 0, 100, 100), box(10, 2, 110, 102)).tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("one", "expected"),
        [
            ((0, 100, 10, 110), ["left of"]),
            ((200, 100, 210, 110), ["right of"]),
            ((100, 0, 110, 10), ["above"]),
            ((100, 200, 110, 210), ["below"]),
            ((0, 0, 10, 10), ["left of", "above"]),
            ((101, 101, 109, 109), []),
        ],
    )
    def test_relations(self, one, expected):
        assert relations(box(*one), box(100, 100, 110, 110)) == expected

    def test_agreement(self):
        towards = torch.tensor([-0.8, 0.5])
        assert agreement(towards, "left of").item() == pytest.approx(0.8)
        assert agreement(towards, "right of").item() == pytest.approx(0.2 / 3)
        assert agreement(towards, "below").item() == pytest.approx(0.5)
        assert agreement(towards, "above").item() == pytest.approx(0.5 / 3)

    def test_overlap_counts_both_end_pixels(self):
        # 10 x 10 and 10 x 20 pixels share 10 x 10.
        found = overlap(box(0, 0, 9, 9), torch.stack([box(0, 0, 9, 19), box(20, 20, 30, 30)]))
        torch.testing.assert_close(found, torch.tensor([0.5, 0.0]))

    def test_distinct_boxes(self):
        boxes = torch.stack([box(0, 0, 10, 10), box(0, 0, 10, 9), box(0, 0, 10, 4), box(50, 50, 60, 60)])
        scores = torch.tensor([0.3, 0.9, 0.8, 0.5])
        assert distinct(boxes, scores, 0.5, 10).tolist() == [1, 2, 3]
        assert distinct(boxes, scores, 0.4, 10).tolist() == [1, 3]
        assert distinct(boxes, scores, 0.95, 2).tolist() == [1, 2]

    def test_certainty(self):
        found = certainty(torch.tensor([0.2, 0.5, 0.0, 1.0]), threshold=0.2)
        # The odds of 0.5 are four times those of 0.2, and sharpness 2 squares that.
        torch.testing.assert_close(found, torch.tensor([0.5, 16 / 17, 0.0, 1.0]), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize(
        ("certainties", "number", "expected"),
        [
            ([1.0, 1.0, 0.0], 2, 0),
            ([1.0, 1.0, 1.0], 1, 2),
            ([], 3, 3),
            ([0.5, 0.5], 1, 0.5),  # 0, 1 and 2 objects by 1/4, 1/2 and 1/4
            ([0.9, 0.2], 0, 1.1),
            ([0.9, 0.2], 1, 0.9 * 0.2 + 0.1 * 0.8),
        ],
    )
    def test_expected_error(self, certainties, number, expected):
        assert expected_error(torch.tensor(certainties), number).item() == pytest.approx(expected, abs=1e-6)


class TestInstances:
    def test_boxes_of_masks(self):
        masks = torch.zeros(3, 6, 8, dtype=torch.bool)
        masks[0, 1:3, 2:7] = True
        masks[2, 5, 7] = True
        assert boxes_of(masks).tolist() == [[2, 1, 7, 3], [0, 0, 0, 0], [7, 5, 8, 6]]

    def test_are_those_of_openmmlab(self):
        official = json.loads((SUITES / "instances.json").read_text())
        classes, masks = torch.tensor(official["classes"]), torch.tensor(official["masks"])
        found = instances_of(classes, masks, official["max_instances"])
        order = found.scores.argsort(descending=True)
        expected = official["instances"]
        assert found.labels[order].tolist() == [each["label"] for each in expected]
        assert found.boxes[order].tolist() == [each["box"] for each in expected]
        assert found.masks[order].flatten(1).sum(1).tolist() == [each["area"] for each in expected]
        torch.testing.assert_close(found.scores[order], torch.tensor([each["score"] for each in expected]))


class TestReading:
    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [
            ("a photo of a dog", [Presence("dog")]),
            ("An image of a fire hydrant.", [Presence("fire hydrant")]),
            ("three apples and a red dog", [Count("apple", 3), Presence("dog", "red")]),
            (
                "two blue buses, 4 knives, and one orange",
                [Count("bus", 2, "blue"), Count("knife", 4), Count("orange", 1)],
            ),
            ("zero foxes, six toes and ten berries", [Count("fox", 0), Count("toe", 6), Count("berry", 10)]),
            ("an orange", [Presence("orange")]),
            ("a couple", [Presence("couple")]),
            ("exactly three apples and exactly one cat", [Count("apple", 3), Count("cat", 1)]),
            (
                "a red star to the left of a blue ring",
                [Presence("star", "red"), Presence("ring", "blue"), Position("star", "left of", "ring", "red", "blue")],
            ),
            (
                "two octopuses, three lenses and four houses",
                [Count("octopus", 2), Count("lens", 3), Count("house", 4)],
            ),
            ("a cat below a dog", [Presence("cat"), Presence("dog"), Position("cat", "below", "dog")]),
        ],
    )
    def test_understands(self, prompt, expected):
        assert read_requirements(prompt) == tuple(expected)

    def test_understands_how_geneval_writes_plurals(self):
        """Which is any name and an s."""
        plurals = {"bench": "benchs", "knife": "knifes", "sheep": "sheeps", "broccoli": "broccolis", "bus": "buses"}
        for name in OBJECTS:
            plural = plurals.get(name, f"{name}s")
            if name not in ("scissors", "skis", "tennis racket") and not name.endswith("glass"):
                assert read_requirements(f"a photo of two {plural}") == (Count(name, 2),), name
        assert read_requirements("a photo of four wine glasses") == (Count("wine glass", 4),)

    @pytest.mark.parametrize(
        ("prompt", "part"),
        [
            ("", "begins with neither"),
            ("dogs", "begins with neither"),
            ("no dogs", "begins with neither"),
            ("exactly a dog", "begins with neither"),
            ("a dog in a park", "'in' is no part"),
            ("a dog and a cat wearing a hat", "'wearing' is no part"),
            ("a dog sleeping", "'sleeping' is no part"),
            ("a red green apple", "'green' is no part"),
            ("a very old and rusty car", "'very' is no part"),
            ("three cactus", "'cactus', whose plural is not understood"),
            ("99 dogs", "the number 99"),
            ("two hundred birds", "'hundred' is no part"),
            ("a dozen eggs", "'dozen' is no part"),
            ("a couple dogs", "'couple' is no part"),
            ("a twenty dogs", "'twenty' is no part"),
            ("two dogs left of a cat", "a relation of several things"),
            ("a dog left of a cat below a bird", "more than one relation"),
            ("a dog left of a dog", "cannot be told apart"),
        ],
    )
    def test_refuses(self, prompt, part):
        with pytest.raises(ValueError) as error:
            read_requirements(prompt)
        assert part in str(error.value) and repr(prompt) in str(error.value)


def test_a_detector_may_find_nothing_at_all():
    """As one of a plug-in may, which keeps those boxes alone that it is sure of."""
    certainties = torch.zeros(0, requires_grad=True)
    nothing = Found(certainties.sigmoid(), torch.zeros(0, dtype=torch.bool), torch.zeros(0, 4))
    scene = SimpleNamespace(find=lambda name, colour: nothing)
    required = (Presence("dog"), Count("dog", 2), Count("dog", 0), Position("dog", "above", "cat"))
    assert [each.grade(scene).tolist() for each in required] == [0, pytest.approx(1 / 3), 1, 0]
    assert [each.holds(scene) for each in required] == [False, False, True, False]
    assert all(each.grade(scene).requires_grad for each in required)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Presence(""), "the object is ''"),
        (lambda: Presence("dog. cat"), "the object is 'dog. cat'"),
        (lambda: Presence("dog", "mauve"), "colour is 'mauve'; give one of red"),
        (lambda: Count("dog", 33), "number is 33; give a whole number from 0 to 32"),
        (lambda: Count("dog", 2.5), "number is 2.5"),
        (lambda: Position("dog", "behind", "cat"), "relation is 'behind'; give one of left of"),
        (lambda: Position("dog", "above", "dog"), "can be told apart"),
    ],
)
def test_malformed_requirements(make, part):
    with pytest.raises(ValueError) as error:
        make()
    assert part in str(error.value)
