"""Group offloading as diffusers does it, between two places on one CPU: what is taken away is NaN until it is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from diffusers.hooks.group_offloading import (
    GroupOffloadingConfig,
    GroupOffloadingType,
    ModuleGroup,
    _apply_group_offloading,
)
from torch import Tensor, nn

from diamond_diffusers.families import group_offloading


class Stream:
    """A stream that is never late."""

    def synchronize(self) -> None:
        pass


class Places:
    """Where the weights of offloaded groups are.

    Attributes:
        away: the numbers of the weights that are offloaded, by the identity of each.
        most: the most bytes of offloaded modules that were on the device at once.
    """

    def __init__(self) -> None:
        self.away: dict[int, Tensor] = {}
        self._seen: dict[int, Tensor] = {}
        self.most = 0

    def onload(self, group: ModuleGroup) -> None:
        for tensor in group_offloading._tensors_of(group):
            if id(tensor) in self.away:
                tensor.data = self.away.pop(id(tensor))
        self.most = max(self.most, self.present)

    def offload(self, group: ModuleGroup) -> None:
        for tensor in group_offloading._tensors_of(group):
            self._seen[id(tensor)] = tensor
            if id(tensor) not in self.away:
                self.away[id(tensor)] = tensor.data
                tensor.data = torch.full_like(tensor.data, torch.nan if tensor.is_floating_point() else -1)

    def brought(self, tensor: Tensor, group: ModuleGroup) -> Tensor:
        return self.away.get(id(tensor), tensor.data)

    @property
    def present(self) -> int:
        return sum(tensor.nbytes for number, tensor in self._seen.items() if number not in self.away)


@contextmanager
def simulated_offloading() -> Iterator[Places]:
    """Context in which group offloading is between the places of one CPU."""
    places = Places()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModuleGroup, "onload_", lambda group: places.onload(group))
        patch.setattr(ModuleGroup, "offload_", lambda group: places.offload(group))
        patch.setattr(ModuleGroup, "_init_cpu_param_dict", lambda group: {})
        patch.setattr(group_offloading, "brought", places.brought)
        yield places


def offload_in_groups(module: nn.Module, kind: str, num_blocks: int = 1, streams: bool = False) -> None:
    """What `enable_group_offload` does; torch has no streams on the CPU."""
    cpu = torch.device("cpu")
    config = GroupOffloadingConfig(
        cpu,
        cpu,
        GroupOffloadingType(kind),
        non_blocking=False,
        record_stream=False,
        low_cpu_mem_usage=True,
        num_blocks_per_group=num_blocks,
        stream=Stream() if streams else None,
        block_modules=getattr(module, "_group_offload_block_modules", None),
        exclude_kwargs=getattr(module, "_skip_keys", None),
    )
    _apply_group_offloading(module, config)
