"""T2I-CompBench's rules of positions and numbers, held to its own code; see fixtures/suites/README.md."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.suites.compbench_spatial import CompBenchSpatialJudge
from diamond_diffusers.evaluation.suites.compbench_spatial_rules import (
    Seen,
    distinct_boxes,
    numeracy_score,
    read_numbers,
    read_spatial,
    spatial_score,
)

from ..rewards.tiny_detectors import Drawn

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures" / "suites" / "compbench_spatial.json").read_text())
BLANK = Image.new("RGB", (512, 512), "white")


def test_scores_of_positions_are_the_official_ones():
    for case in OFFICIAL["spatial"]:
        one, other = (None if case[key] is None else Seen(*case[key]) for key in ("one", "other"))
        assert spatial_score(case["relation"], one, other) == pytest.approx(case["score"]), case
    assert len({case["score"] for case in OFFICIAL["spatial"]}) > 5


def test_scores_of_numbers_are_the_official_ones():
    for case in OFFICIAL["numeracy"]:
        of_names = {name: [box for own, box in case["boxes"] if own == name] for name, _ in case["wanted"]}
        found = {name: len(distinct_boxes(boxes)) for name, boxes in of_names.items()}
        assert numeracy_score(found, [tuple(each) for each in case["wanted"]]) == pytest.approx(case["score"]), case
    assert len({case["score"] for case in OFFICIAL["numeracy"]}) > 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat on the top of a sofa", ("cat", "on the top of", "sofa")),
        ("a bird on side of a airplane", ("bird", "on side of", "airplane")),
        ("A pig near a wallet.", ("pig", "near", "wallet")),
        ("a cat and a dog", None),
        ("the dog is next to the cat", None),
    ],
)
def test_reads_positions(text, expected):
    assert read_spatial(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two boys", [("boy", 2)]),
        ("six people gathered for a picnic", [("person", 6)]),
        (
            "three sheep, two mice, one goldfish and four knives",
            [("sheep", 3), ("mouse", 2), ("goldfish", 1), ("knife", 4)],
        ),
        ("a microwave, eight strawberries, and an egg", [("microwave", 1), ("strawberry", 8), ("egg", 1)]),
        ("a lively tune", []),
    ],
)
def test_reads_numbers(text, expected):
    assert read_numbers(text) == expected


def test_judges_positions():
    drawn = Drawn(cat=[((0, 0, 90, 90), 0.8), ((400, 0, 490, 90), 0.6)], dog=[((200, 0, 290, 90), 0.7)])
    prompts = [
        Prompt(0, f"a cat on the {side} of a {other}")
        for side, other in (("left", "dog"), ("right", "dog"), ("left", "cow"))
    ]
    left, right, missing = CompBenchSpatialJudge(drawn).judge([BLANK] * 3, prompts)
    assert left.score == pytest.approx(0.5 + 0.25 * (0.8 + 0.7)) and left.reason == ""
    assert left.details == pytest.approx({"cat": 0.8, "dog": 0.7})
    assert right.score == 0 and right.reason == "cat is not on the right of dog"
    assert missing.score == 0 and missing.reason == "no cow"


def test_judges_numbers():
    """A box within another one of the same thing does not count, nor does one below the threshold."""
    boxes = [((0, 0, 90, 90), 0.8), ((0, 0, 90, 40), 0.7), ((200, 0, 290, 90), 0.6), ((400, 0, 490, 90), 0.4)]
    judge = CompBenchSpatialJudge(Drawn(cat=boxes, dog=[((200, 200, 290, 290), 0.7)]))
    (verdict,) = judge.judge([BLANK], [Prompt(0, "two cats, three dogs and one cow")])
    assert verdict.score == pytest.approx((1 + 0.5 + 0) / 3)
    assert verdict.reason == "1 dog in place of 3; 0 cow in place of 1"
    assert verdict.details == {"cat": 2, "dog": 1, "cow": 0}


def test_other_prompts_are_refused():
    judge = CompBenchSpatialJudge(Drawn())
    with pytest.raises(ValueError, match=r"names neither two things .*; give those of T2I-CompBench's spatial_val.txt"):
        judge.judge([BLANK], [Prompt(0, "a green bench")])
    with pytest.raises(ValueError, match="1 images and 0 prompts"):
        judge.judge([BLANK], [])
