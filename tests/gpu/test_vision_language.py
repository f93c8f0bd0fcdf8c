"""Vision-language judges on a GPU: in half precision and quantised, near what the CPU says in float32."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from diamond_diffusers.rewards import VisionLanguageJudge

from ..rewards.vision_language_models import save_tiny_model

pytestmark = pytest.mark.gpu

QUESTIONS = ["Is it a cat", "Is it", "How many cats are in it"]
ANSWERS = ["Yes", "a red cat", ["2", "two"]]


def scores(judge: VisionLanguageJudge, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and their gradient, on the CPU."""
    images = images.clone().requires_grad_()
    found = judge.log_probabilities(images, QUESTIONS, ANSWERS, [0, 0, 1])
    return found.detach().cpu(), torch.autograd.grad(found.sum(), images)[0].cpu()


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"quantization": "nf4"}], ids=str)
def test_scores_are_near_those_of_the_cpu(options: dict[str, str], tmp_path: Path, gpu: torch.device) -> None:
    package = {"int8": "torchao", "nf4": "bitsandbytes"}.get(options.get("quantization", ""))
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"there is no {package}")
    if package == "bitsandbytes" and gpu.type != "cuda":
        pytest.skip("4 bits need a CUDA device")
    save_tiny_model("qwen2_5_vl", tmp_path)
    images = torch.rand(2, 3, 84, 56, generator=torch.Generator().manual_seed(0))
    expected, gradient = scores(VisionLanguageJudge(tmp_path), images)
    judge = VisionLanguageJudge(tmp_path, device=gpu, dtype=torch.bfloat16, **options)
    found, found_gradient = scores(judge, images.to(gpu))
    # Weights as random as these have no redundancy, so that 4 bits move their scores far.
    torch.testing.assert_close(found, expected, atol=5.0 if package == "bitsandbytes" else 0.3, rtol=0)
    assert found_gradient.isfinite().all()
    if package != "bitsandbytes":
        assert (found_gradient - gradient).norm() < 0.3 * gradient.norm()
