"""Saving the weights of the base alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..models.two_time import TwoTimeEmbedder

WRAPPERS = (BaseTunerLayer, TwoTimeEmbedder)


@contextmanager
def clean_weights(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Takes adapters and wrappers out of a pipeline's networks, and puts them back."""
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            replaced += [
                (parent, name, child)
                for parent in component.modules()
                for name, child in parent.named_children()
                if isinstance(child, WRAPPERS)
            ]
    for parent, name, child in replaced:
        setattr(parent, name, _unwrapped(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, TwoTimeEmbedder):
        return module.original_embedder
    return _unwrapped(module.base_layer) if isinstance(module, BaseTunerLayer) else module
