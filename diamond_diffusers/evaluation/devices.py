"""What a device is called in records."""

from __future__ import annotations

import platform

import torch


def device_name(device: torch.device) -> str:
    """The name of an accelerator; of the CPU, and of Apple's GPU, of which torch has none, that of the architecture."""
    named = getattr(torch.get_device_module(device), "get_device_name", None)
    return platform.machine() if named is None else str(named(device))
