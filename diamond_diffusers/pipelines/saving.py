"""Saving a model: the weights of the base alone, and what goes beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..models.diamond_map import DiamondMap
from ..models.storage import CONFIG_NAME, FORMAT_VERSION, save_diamond_map
from ..models.two_time import TwoTimeEmbedder
from .loading import MAP_FOLDER

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


def write_defaults(folder: str | Path, family: str, defaults: dict[str, Any]) -> None:
    """Writes call defaults beside a saved stock pipeline."""
    target = Path(folder) / MAP_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    config = {"format_version": FORMAT_VERSION, "family": family, "defaults": defaults}
    (target / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def write_map(folder: str | Path, diamond_map: DiamondMap, defaults: dict[str, Any]) -> None:
    """Writes a Diamond Map, and the call defaults, beside a saved stock pipeline."""
    save_diamond_map(Path(folder) / MAP_FOLDER, diamond_map, defaults, diamond_map.training_facts)
