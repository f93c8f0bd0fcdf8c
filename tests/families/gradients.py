"""The gradient of a value through network, decoder and reward, for the tests that change how these are evaluated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diamond_diffusers import DiamondMapPipeline
from diamond_diffusers.alignment.execution import Checkpointing, Execution
from diamond_diffusers.alignment.law import Law
from diamond_diffusers.pipelines.call import Call
from diamond_diffusers.rewards.base import Reward

from .family import TinyFamily, generators

LEVEL = 0.8
"""At which all families have a network to evaluate."""


class Contrast(Reward):
    """A reward whose gradient depends on the image."""

    name = "contrast"

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 10 * images.double().square().mean((1, 2, 3))


def prepared(pipe: DiamondMapPipeline, family: TinyFamily, **options: object) -> Call:
    """A call for one image."""
    return pipe.prepare(prompt="a red circle", **{**family.call, **options})


def value_and_gradient(call: Call, checkpointing: Checkpointing, kind: str = "predict") -> tuple[Tensor, Tensor]:
    """The value of look-aheads through the previewing decoder, and its gradient at the observations.

    Args:
        call: of one image.
        checkpointing: what is evaluated again on the way back.
        kind: what the network is asked for: `predict` or `denoise`.
    """
    with call.active():
        execution = Execution(gradient_checkpointing=checkpointing)
        law = Law(call.family, call.conditions, call.texts, Contrast(), execution=execution)
        latents = call.family.prepare_latents(call.arguments, call.conditions, 1, generators(1))
        x = latents.float().requires_grad_()
        rows = law.rows(x)
        values = rows.tilt(getattr(rows.network, kind)(x, LEVEL), LEVEL)
        (gradient,) = torch.autograd.grad(values.sum(), x)
    return values.detach(), gradient


def assert_same(made: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], **tolerance: float) -> None:
    """Values and gradients are the same, to the bit where no tolerance is given."""
    assert expected[1].abs().max() > 0
    for tensor, other in zip(made, expected, strict=True):
        torch.testing.assert_close(tensor, other, **(tolerance or {"atol": 0, "rtol": 0}))
