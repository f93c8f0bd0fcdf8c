"""How much memory of a device is free."""

from __future__ import annotations

import torch

ACCELERATORS = ("cuda", "xpu", "mps")
"""Accelerators of NVIDIA and AMD, Intel, and Apple: those that are supported, whose free memory torch tells."""


def free_memory(device: torch.device) -> int:
    """Bytes of a device that new tensors may take, with what torch keeps for them; of the CPU those of the machine.

    Raises:
        ValueError: torch does not tell for devices of this type.
    """
    if device.type == "cpu":
        # Nothing else needs it.
        import psutil

        return int(psutil.virtual_memory().available)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    if device.type not in ACCELERATORS:
        raise ValueError(
            f"particle_batch_size or gradient_checkpointing is 'auto', but torch does not tell the free memory of "
            f"{device.type!r} devices; give a number and True or False"
        )
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    # What torch has reserved and does not use is free for new tensors.
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))
