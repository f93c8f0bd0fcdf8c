"""Forward-mode differentiation of networks in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@contextmanager
def tangents_like_outputs(network: nn.Module) -> Iterator[None]:
    """Gives the outputs of a network's normalisation layers tangents of the outputs' own dtype.

    For an input in half precision these layers keep their statistics in float32, always so on a GPU. Torch's
    forward-mode rules then give the tangent that dtype, but not the output, and the next matrix product fails.
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
