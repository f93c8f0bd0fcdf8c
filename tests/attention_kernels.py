"""Which attention kernels may be chosen in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.backends import cuda


@contextmanager
def watched(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[bool]]]:
    """For each forward pass that is differentiated, whether cuDNN's attention may be chosen in it."""
    seen = {name: [] for name in modules}

    def watch(name):
        def hook(module, args, kwargs):
            if torch.is_grad_enabled():
                seen[name].append(cuda.cudnn_sdp_enabled())

        return hook

    handles = [module.register_forward_pre_hook(watch(name), with_kwargs=True) for name, module in modules.items()]
    yield seen
    for handle in handles:
        handle.remove()
