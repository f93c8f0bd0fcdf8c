"""Gradient checkpointing of frozen transformers models."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_layers(model: nn.Module) -> None:
    """Makes every transformer layer recompute its activations in the backward pass, also in evaluation mode.

    transformers checkpoints only layers in training mode. The mode of the layer alone is changed, not that of the
    modules within it, so dropout stays off; a later `model.eval()` or `model.train()` undoes it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = True
            module._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            module.training = True
