"""What tests of whole runs compare."""

from __future__ import annotations

import torch

from diamond_diffusers.training.trainer import Trainer


def weights_of(run: Trainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in run.parameters]


def assert_same(first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
