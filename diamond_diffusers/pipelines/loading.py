"""Where models and their defaults come from, and where they are saved."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..backbones import check_supported
from ..models.storage import MissingMapError, read_config, read_map_config

MAP_FOLDER = "diamond_map"
EMBEDDED_MODEL = "miniature"
"""By which a map names the model that ships with the package as its base."""
NOT_THERE = (FileNotFoundError, EntryNotFoundError, LocalEntryNotFoundError)
"""What reading a declaration raises where there is none, on the disk and on the Hub."""
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


def embedded_model() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(importlib.resources.files("diamond_diffusers") / "miniature" / "weights" / "pipeline"))


def read_defaults(model: str | Path, **hub: Any) -> dict[str, Any]:
    """The call defaults that a model's folder or Hub repository declares in `diamond_map/`; empty where it has none.

    Args:
        model: folder or Hub repository.
        **hub: as of `read_config`.

    Raises:
        ValueError: the declaration is not of a version that this package reads.
    """
    try:
        return read_config(model, subfolder=MAP_FOLDER, **hub)["defaults"]
    except NOT_THERE:
        return {}


@dataclass(frozen=True)
class FoundMap:
    """A Diamond Map that a model's folder or repository holds.

    Attributes:
        source, hub: what `load_diamond_map` takes.
        base, base_revision: where the map's base is, where the folder or repository does not hold it itself.
    """

    source: str | Path
    hub: dict[str, Any]
    base: str | Path | None = None
    base_revision: str | None = None


def find_map(model: str | Path, hub: Mapping[str, Any]) -> FoundMap | None:
    """The Diamond Map of a folder or Hub repository: the map alone, or beside its base in `diamond_map/`."""
    for subfolder in (None, MAP_FOLDER):
        options = {**hub, "subfolder": subfolder}
        try:
            config = read_map_config(model, **options)
        except (*NOT_THERE, MissingMapError):
            continue
        if subfolder is not None:
            return FoundMap(model, options)
        base = embedded_model() if config["base_model"] == EMBEDDED_MODEL else config["base_model"]
        return FoundMap(model, options, base, config["base_revision"])
    return None


def single_file_class(checkpoint: str | os.PathLike, options: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """The stock pipeline class that loads a checkpoint file.

    Args:
        checkpoint: a file, or its address on the Hub.
        options: of the stock `from_single_file`; `config` is read where given, else the checkpoint's keys.

    Raises:
        TypeError: the class is not supported, or has no `from_single_file`.
    """
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    config = options.get("config")
    if config is None:
        keys = load_single_file_checkpoint(str(checkpoint), **hub)
        config = fetch_diffusers_config(keys)["pretrained_model_name_or_path"]
    name = DiffusionPipeline.load_config(config, **hub)["_class_name"]
    check_supported(name)
    loader = getattr(diffusers, name)
    if not hasattr(loader, "from_single_file"):
        raise TypeError(f"stock diffusers cannot load {name} from a single file; save it as a folder first")
    return loader
