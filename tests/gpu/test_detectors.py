"""Rewards by detectors and GenEval's judge on an accelerator say what they say on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from diamond_diffusers.rewards import CompositionReward
from diamond_diffusers.rewards.detection import Count, Position, Presence
from diamond_diffusers.rewards.detection.segmenters import InstanceSegmenter

from ..rewards.tiny_detectors import save_grounding_dino, save_mask2former, save_owlv2

pytestmark = pytest.mark.gpu

PICTURES = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255


@pytest.mark.parametrize("graded", [True, False], ids=["graded", "hard"])
@pytest.mark.parametrize("save", [save_owlv2, save_grounding_dino])
def test_rewards(save: Callable[[Path], Path], graded: bool, gpu: torch.device, tmp_path: Path) -> None:
    required = [Presence("dog"), Count("apple", 2), Position("dog", "left of", "cat")]
    here = CompositionReward(required, detector=save(tmp_path), graded=graded, threshold=0.8)
    there = CompositionReward(required, detector=tmp_path, graded=graded, threshold=0.8, device=gpu)
    images = PICTURES.to(gpu).requires_grad_(graded)
    scores = there(images, ["", ""])
    assert scores.device.type == gpu.type
    torch.testing.assert_close(scores.detach().cpu(), here(PICTURES, ["", ""]), rtol=0.02, atol=0.01)
    if graded:
        (gradient,) = torch.autograd.grad(scores.sum(), images)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_instances(gpu: torch.device, tmp_path: Path) -> None:
    picture = to_pil_image(PICTURES[0])
    here, there = (
        InstanceSegmenter(save_mask2former(tmp_path), shortest_edge=64, device=each).segment(picture)
        for each in ("cpu", gpu)
    )
    assert there.masks.device.type == gpu.type
    torch.testing.assert_close(there.scores.cpu().sort().values, here.scores.sort().values, rtol=0.02, atol=0.01)
