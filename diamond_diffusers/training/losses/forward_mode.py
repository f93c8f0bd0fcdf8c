"""Forward-mode differentiation of networks in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@contextmanager
def tangents_like_outputs(network: nn.Module) -> Iterator[None]:
    """Gives what normalisation layers of a network return a tangent of its own dtype.

    They keep their statistics in float32 where their input is in half precision, always on a GPU, and torch's
    forward-mode rules hand that dtype on to the tangent alone: the next matrix product then fails.
    """

    def cast(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        # There and back leaves the output as it is.
        return output.float().to(output.dtype)

    handles = [module.register_forward_hook(cast) for module in network.modules() if isinstance(module, NORMS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
