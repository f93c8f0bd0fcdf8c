"""The distilled module, which is passed to `accelerate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from ..maps.diamond_map import DiamondMap

Result = TypeVar("Result")


class DistilledModule(nn.Module):
    """A map with its network, so that every evaluation goes through one module and can be distributed.

    Trained weights are in float32, whatever the precision of the base: half precision would round their updates away.

    Args:
        diamond_map: the map, with its family.
    """

    def __init__(self, diamond_map: DiamondMap) -> None:
        super().__init__()
        for parameter in diamond_map.trained_parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.diamond_map = diamond_map
        self.network = diamond_map.family.network_module

    def forward(self, function: Callable[[DiamondMap], Result]) -> Result:
        """Returns `function(diamond_map)`. Tensors are not passed as arguments, since sharding would cast them."""
        return function(self.diamond_map)
