"""Gradients for latents alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Takes weights out of the autograd graphs, which would hold every layer's input for their sake."""
    # By name, since offloading replaces the weights themselves.
    trained = [
        (layer, name)
        for module in modules
        for layer in module.modules()
        for name, weight in layer.named_parameters(recurse=False)
        if weight.requires_grad and not weight.is_inference()
    ]
    try:
        for layer, name in trained:
            getattr(layer, name).requires_grad_(False)
        yield
    finally:
        for layer, name in trained:
            getattr(layer, name).requires_grad_(True)
