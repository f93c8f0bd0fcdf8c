"""Mask2Former as the suites use it, on tiny random weights of the real class."""

import numpy
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.suites.geneval import GenEvalJudge
from diamond_diffusers.evaluation.suites.geneval_rules import OBJECTS, Thresholds
from diamond_diffusers.rewards.detection.segmenters import InstanceSegmenter, instances_of

from .tiny_detectors import save_mask2former, save_owlv2


def picture(height, width):
    return to_pil_image(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp("coco"), classes=OBJECTS)


@pytest.mark.slow
@torch.no_grad()
def test_is_the_stock_model_with_the_stock_post_processing(tmp_path):
    """Where the latter measures masks as it should: on images of 384x384."""
    folder = save_mask2former(tmp_path, edge=384)
    image = picture(384, 384)
    found = InstanceSegmenter(folder, shortest_edge=384).segment(image)
    processor = AutoImageProcessor.from_pretrained(folder)
    outputs = AutoModelForUniversalSegmentation.from_pretrained(folder)(**processor(image, return_tensors="pt"))
    (stock,) = processor.post_process_instance_segmentation(
        outputs, threshold=0.0, target_sizes=[(384, 384)], return_binary_maps=True
    )
    # Up to as many as there are queries, and only those with pixels.
    order = [row for row in found.scores.argsort(descending=True).tolist() if found.masks[row].any()]
    expected = sorted(range(len(stock["segments_info"])), key=lambda row: -stock["segments_info"][row]["score"])
    assert len(expected) >= 5
    for mine, theirs in zip(order[:3], expected[:3], strict=True):
        assert found.labels[mine] == stock["segments_info"][theirs]["label_id"]
        assert found.scores[mine].item() == pytest.approx(stock["segments_info"][theirs]["score"], abs=2e-6)
        assert torch.equal(found.masks[mine], stock["segmentation"][theirs].bool())


@torch.no_grad()
def test_resizes_and_pads_as_detectron2_and_openmmlab(coco):
    """By hand: 50x90 to 64x115, padded with grey by 13 columns, which are cut off before masks are enlarged."""
    image = picture(50, 90)
    segmenter = InstanceSegmenter(coco, shortest_edge=64, longest_edge=200)
    levels = numpy.asarray(image.resize((115, 64), Image.Resampling.BILINEAR)) / 255
    levels = (levels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    pixels = torch.from_numpy(numpy.pad(levels, ((0, 0), (0, 13), (0, 0)))).permute(2, 0, 1).float()
    torch.testing.assert_close(segmenter.pixels(image)[1][0], pixels)

    outputs = AutoModelForUniversalSegmentation.from_pretrained(coco)(pixels[None])
    masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, (64, 128), mode="bilinear")[..., :115]
    masks = torch.nn.functional.interpolate(masks, (50, 90), mode="bilinear")[0]
    found, expected = segmenter.segment(image), instances_of(outputs.class_queries_logits[0], masks)
    assert found.masks.shape == (100, 50, 90) and found.masks.any()
    order, reference = found.scores.argsort(), expected.scores.argsort()
    torch.testing.assert_close(found.scores[order], expected.scores[reference], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.boxes[order[-3:]], expected.boxes[reference[-3:]])


def test_the_longer_side_has_its_bound_too(coco):
    segmenter = InstanceSegmenter(coco, shortest_edge=64, longest_edge=90)
    (height, width), pixels = segmenter.pixels(picture(50, 100))
    assert (height, width) == (45, 90) and pixels.shape == (1, 3, 64, 96)


def test_judges_by_name(coco, clip_folder):
    """All objects that are found at all count here, so that colours are asked for."""
    judge = GenEvalJudge(coco, clip_folder, thresholds=Thresholds(confidence=0.001))
    assert (judge.detector.shortest_edge, judge.detector.longest_edge) == (800, 1333)
    # Of the published size, this is dear.
    judge.detector.shortest_edge = 64
    image = picture(64, 64)
    (name, *_), count = judge._found(image, is_counting=False).keys(), {"count": 1}
    include = [{"class": name, **count, "color": "red"}]
    prompts = [Prompt(0, "made up", "colors", {"tag": "colors", "include": include})] * 2
    verdicts = judge.judge([image, image.convert("RGBA")], prompts)
    assert verdicts[0] == verdicts[1]
    colours = judge._name_colours(image, judge._found(image, is_counting=False)[name][:1], name)
    assert verdicts[0].score == float(colours == ["red"])
    assert verdicts[0].details[name] >= 1


def test_checkpoints_of_another_kind_are_refused(tmp_path, coco, clip_folder):
    with pytest.raises(
        OSError, match=r"'geneval' cannot load checkpoint=.* with a Mask2Former and its image processor"
    ):
        GenEvalJudge(save_owlv2(tmp_path / "owlv2"), clip_folder)
    with pytest.raises(ValueError, match=r"has 2 classes, the first of them 'wall'; give a Mask2Former"):
        GenEvalJudge(save_mask2former(tmp_path / "two", classes=("wall", "sky")), clip_folder)
    with pytest.raises(TypeError, match="'geneval' got the unknown option colour='red'"):
        GenEvalJudge(coco, clip_folder, colour="red")


def test_half_precision(coco):
    segmenter = InstanceSegmenter(coco, shortest_edge=64, dtype=torch.bfloat16)
    found = segmenter.segment(Image.new("RGB", (64, 64), "red"))
    assert segmenter.model.dtype == torch.bfloat16 and found.scores.dtype == torch.float32
    assert found.scores.isfinite().all()
