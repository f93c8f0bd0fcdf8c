"""The losses of the trainer on a GPU, in the precisions that `--mixed_precision` offers."""

from __future__ import annotations

import pytest
import torch

from diamond_diffusers.training.losses import LOSSES
from diamond_diffusers.training.trainer import Trainer

from .runs import weights_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("loss", sorted(LOSSES.names()))
def test_losses_and_their_gradients_are_finite(options, loss: str, precision: str, gpu: torch.device) -> None:
    if gpu.type == "cpu" and precision == "fp16":
        pytest.skip("accelerate scales gradients in float16 on GPUs alone")
    further = ["--loss", loss, "--mixed_precision", precision, "--max_train_steps", 2]
    run = Trainer(options("--pretrained_model_name_or_path", "miniature", *further))
    assert run.accelerator.device.type == gpu.type
    before = weights_of(run)
    # It raises where a loss or the norm of its gradients is not finite.
    run.run()
    after = weights_of(run)
    assert all(weight.isfinite().all() for weight in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
