"""Mask2Former as the suites use it, on tiny random weights of the real class."""

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from diamond_diffusers.evaluation.benchmark.prompts import Prompt
from diamond_diffusers.evaluation.suites.geneval import GenEvalJudge
from diamond_diffusers.evaluation.suites.geneval_rules import OBJECTS, Thresholds
from diamond_diffusers.rewards.detection.segmenters import InstanceSegmenter

from .tiny_detectors import save_mask2former, save_owlv2


def picture(height, width):
    return to_pil_image(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return save_mask2former(tmp_path_factory.mktemp("coco"), classes=OBJECTS)


@torch.no_grad()
def test_is_the_stock_model_with_the_stock_post_processing(tmp_path):
    """Where the latter measures masks as it should: on images of 384x384."""
    folder = save_mask2former(tmp_path, edge=384)
    image = picture(384, 384)
    found = InstanceSegmenter(folder).segment(image)
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


def test_masks_and_boxes_have_the_size_of_the_image(coco):
    found = InstanceSegmenter(coco, max_instances=7).segment(picture(50, 90))
    assert found.masks.shape == (7, 50, 90) and found.boxes.shape == (7, 4)
    assert found.boxes[:, 2].max() <= 90 and found.boxes[:, 3].max() <= 50


def test_judges_by_name(coco, clip_folder):
    """All objects that are found at all count here, so that colours are asked for."""
    judge = GenEvalJudge(coco, clip_folder, thresholds=Thresholds(confidence=0.001))
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
    segmenter = InstanceSegmenter(coco, dtype=torch.bfloat16)
    found = segmenter.segment(Image.new("RGB", (64, 64), "red"))
    assert segmenter.model.dtype == torch.bfloat16 and found.scores.dtype == torch.float32
    assert found.scores.isfinite().all()
