"""GenEval's rules, held to the verdicts of its own code; see fixtures/suites/README.md."""

import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.suites.base import Verdict
from diamond_diffusers.evaluation.suites.geneval import GenEvalJudge, summarise
from diamond_diffusers.evaluation.suites.geneval_rules import OBJECTS, DetectedObject, Thresholds
from diamond_diffusers.rewards.detection.segmenters import Instances

from ..rewards.golden import L14_CONFIG, Golden, write_open_clip

OFFICIAL = json.loads((Path(__file__).parents[1] / "fixtures" / "suites" / "geneval.json").read_text())
CASES = OFFICIAL["cases"]


class MadeUp:
    """Finds what a case says."""

    def __init__(self, detections):
        self.detections = detections

    def segment(self, image):
        boxes = torch.tensor([each["box"] for each in self.detections], dtype=torch.float32).reshape(-1, 4)
        return Instances(
            labels=torch.tensor([OBJECTS.index(each["class"]) for each in self.detections], dtype=torch.long),
            scores=torch.tensor([each["score"] for each in self.detections], dtype=torch.float32),
            boxes=boxes,
            masks=torch.zeros(len(boxes), image.height, image.width, dtype=torch.bool),
        )

    def colours(self, image, objects, name):
        """What a case says of colours, too."""
        said = {tuple(map(float, each["box"])): each["color"] for each in self.detections if each["class"] == name}
        return [said[tuple(each.box.tolist())] for each in objects]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_open_clip(Golden("clip_l14"), tmp_path_factory.mktemp("clip"), L14_CONFIG)


@pytest.fixture(scope="module")
def judge(clip):
    return GenEvalJudge(MadeUp([]), clip)


def prompt_of(metadata, index=0):
    return Prompt(index, metadata.get("prompt", "made up"), metadata["tag"], metadata)


def with_sorted_relations(reason):
    """The official tool writes down a set, in no order."""
    return re.sub(
        r"found ([^\n]*) target", lambda found: "found " + " and ".join(sorted(found[1].split(" and "))), reason
    )


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_verdicts_are_the_official_ones(judge, monkeypatch, case):
    monkeypatch.setattr(judge, "detector", MadeUp(case["detections"]))
    monkeypatch.setattr(judge, "_name_colours", judge.detector.colours)
    monkeypatch.setattr(judge, "thresholds", Thresholds(max_overlap=case.get("max_overlap", 1.0)))
    (verdict,) = judge.judge([Image.new("RGB", (64, 64))], [prompt_of(case["metadata"])])
    assert verdict.score == float(case["correct"])
    assert with_sorted_relations(verdict.reason) == with_sorted_relations(case["reason"])
    assert verdict.details == case["found"]


def test_the_cases_have_all_reasons():
    reasons = "\n".join(case["reason"] for case in CASES)
    for part in (
        r">=1, found 0$",
        r"<\d+, found",
        r"; and \d",
        "no target for",
        "found left of target",
        "found  target",
    ):
        assert re.search(part, reasons, re.MULTILINE), part
    assert sum(case["correct"] for case in CASES) > 15


def test_the_summary_is_the_official_one():
    expected = OFFICIAL["summary"]
    prompts = [prompt_of(case["metadata"]) for case in CASES]
    verdicts = [Verdict(float(case["correct"])) for case in CASES]
    verdicts += [Verdict(1 - verdict.score) for verdict in verdicts[: expected["num_repeated"]]]
    found = summarise(verdicts, prompts + prompts[: expected["num_repeated"]])
    assert found.tasks == pytest.approx(expected["tasks"])
    assert list(found.tasks) == list(expected["tasks"])
    assert found.overall == pytest.approx(expected["overall"])
    assert found.images == pytest.approx(expected["images"])
    assert found.prompts == pytest.approx(expected["prompts"])


def test_a_summary_needs_one_prompt_per_verdict():
    for verdicts in ([], [Verdict(1.0)]):
        with pytest.raises(ValueError, match="give one prompt per verdict"):
            summarise(verdicts, [])


def picture_and_objects():
    across, down = numpy.meshgrid(range(160), range(120))
    channels = (across * 7 + down * 3) % 256, (across * down // 5) % 256, (down * 9 + 40) % 256
    objects = []
    for left, top, right, bottom in OFFICIAL["colours"]["boxes"]:
        x, y = across - (left + right) / 2, down - (top + bottom) / 2
        mask = (x / (right - left) * 2) ** 2 + (y / (bottom - top) * 2) ** 2 <= 1
        objects.append(DetectedObject(torch.tensor([left, top, right, bottom]), 0.9, torch.from_numpy(mask)))
    return Image.fromarray(numpy.stack(channels, -1).astype(numpy.uint8)), objects


def test_colours_are_the_official_ones(judge, monkeypatch):
    """Grey around the mask, the crop, the prompts, and the mean of their features."""
    expected, (picture, objects) = OFFICIAL["colours"], picture_and_objects()
    told, tell = [], judge.colours.probabilities
    monkeypatch.setattr(judge.colours, "probabilities", lambda *shown: told.append(tell(*shown)) or told[0])
    assert judge._name_colours(picture, objects, expected["object"]) == expected["colours"]
    torch.testing.assert_close(told[0], torch.tensor(expected["logits"]).softmax(-1), rtol=1e-3, atol=1e-5)


def test_a_long_thin_object_costs_no_more_than_its_centre(judge, monkeypatch):
    """Enlarging all of it would take gigabytes; only its centre is seen."""
    line = torch.rand(3, 1, 400, generator=torch.Generator().manual_seed(0))
    enlarged, preprocessing = [], judge.colours.clip.preprocessing
    monkeypatch.setattr(
        judge.colours.clip, "preprocessing", lambda crop: enlarged.append(list(crop.shape)) or preprocessing(crop)
    )
    with torch.no_grad():
        found = judge.colours.probabilities([line, line.mT, line[..., 192:208]], "tie")
    assert enlarged == [[1, 3, 1, 16], [1, 3, 16, 1], [1, 3, 1, 16]]
    torch.testing.assert_close(found[0], found[2])


CLAUSE = {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "no 'tag'"),
        ({"tag": "colors"}, "neither 'include' nor 'exclude'"),
        ({"tag": "colors", "include": {}, "exclude": [CLAUSE]}, "include={}, which is no list"),
        ({"tag": "colors", "include": [{"class": "unicorn", "count": 1}]}, "none of GenEval's 80 objects"),
        ({"tag": "colors", "include": [{"class": "cat", "count": "two"}]}, "no positive number"),
        ({"tag": "colors", "include": [{**CLAUSE, "color": "mauve"}]}, "whose 'color' is none of red"),
        ({"tag": "colors", "include": [{**CLAUSE, "position": ["behind", 0]}]}, "whose 'position' is not one of"),
        ({"tag": "colors", "include": [{**CLAUSE, "position": ["above", 0]}]}, "the number of an earlier object"),
    ],
)
def test_other_prompts_are_refused(judge, metadata, sentence):
    with pytest.raises(ValueError) as error:
        judge.judge([Image.new("RGB", (8, 8))], [Prompt(0, "a cat", "", metadata)])
    assert sentence in str(error.value) and "evaluation_metadata.jsonl" in str(error.value)


def test_each_image_needs_a_prompt(judge):
    with pytest.raises(ValueError, match="1 images and 0 prompts"):
        judge.judge([Image.new("RGB", (8, 8))], [])
