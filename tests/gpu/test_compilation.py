"""Compiled networks on a GPU."""

from __future__ import annotations

import pytest
import torch

from .calls import PATHWISE, assert_near, fresh, images

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("family", ["flux", "stable_diffusion", "sana_sprint"])
def test_compiled_networks_are_differentiated_through(family: str, gpu: torch.device) -> None:
    pipe = fresh(family, gpu)
    expected = images(pipe, family, **PATHWISE)
    # On a CPU the compiler of C++ takes minutes.
    pipe.family.network_module.compile(backend="eager" if gpu.type == "cpu" else "inductor")
    try:
        assert_near(images(pipe, family, **PATHWISE), expected, 1e-4)
    finally:
        torch._dynamo.reset()
