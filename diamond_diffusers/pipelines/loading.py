"""Finds models, their Diamond Maps and their call defaults in folders, checkpoint files and Hub repositories."""

from __future__ import annotations

import importlib.resources
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..families.registry import check_supported
from ..files.foreign import ForeignFileError
from ..maps.map_config import CONFIG_NAME, read_config

logger = logging.getLogger(__name__)

MAP_FOLDER = "diamond_map"
EMBEDDED_MODEL = "miniature"
"""By which a map names the model that ships with the package as its base."""
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def embedded_model() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(importlib.resources.files("diamond_diffusers") / "miniature" / "weights" / "pipeline"))


@dataclass(frozen=True)
class FoundMap:
    """A Diamond Map that a model's folder or repository holds.

    Attributes:
        source, hub: arguments for `read_diamond_map`.
        config: the map's configuration, as from `read_map_config`.
    """

    source: str | os.PathLike[str]
    hub: dict[str, Any]
    config: dict[str, Any]

    @property
    def is_alone(self) -> bool:
        """Whether the map is saved without its base."""
        return self.hub["subfolder"] is None

    @property
    def base(self) -> str | Path:
        """Folder or Hub repository of the base, for a map that is saved without it.

        Raises:
            ValueError: the map does not name its base, or the base's folder is gone.
        """
        base = self.config["base_model"]
        if base == EMBEDDED_MODEL:
            return embedded_model()
        remedy = f"load the base with from_pretrained(...), then load_diamond_map({str(self.source)!r})"
        if base is None:
            raise ValueError(f"the Diamond Map {self.source} does not say where its base is; {remedy}")
        if os.path.isabs(base) and not os.path.isdir(base):
            raise ValueError(f"the base of the Diamond Map {self.source} is not at {base} any more; {remedy}")
        return base


def find_map(model: str | os.PathLike[str], hub: Mapping[str, Any]) -> FoundMap | None:
    """The Diamond Map of a folder or Hub repository: the map alone, or the one in `diamond_map/` beside its base."""
    for subfolder in (None, MAP_FOLDER):
        options = {**hub, "subfolder": subfolder}
        config = _declared(model, **options)
        if config is not None and "base_config" in config:
            return FoundMap(model, options, config)
    return None


def read_defaults(model: str | Path, **hub: Any) -> dict[str, Any]:
    """The call defaults that a model's folder or Hub repository declares: those of its base, and of its Diamond Map.

    Args:
        model: folder or Hub repository; empty defaults where it declares none.
        **hub: as of `read_config`.

    Raises:
        ValueError: the declaration is not of a version that this package reads.
    """
    found = find_map(model, hub)
    base, hub = base_of(model, hub, found)
    own = {} if found is None else found.config["defaults"]
    return {**read_base_defaults(base, **hub), **own}


def base_of(
    model: str | os.PathLike[str], hub: Mapping[str, Any], found: FoundMap | None
) -> tuple[str | os.PathLike[str], dict[str, Any]]:
    """Where the base of a model is, and the options of the Hub for it: elsewhere if the model is a Diamond Map alone.

    Args:
        model, hub: folder or Hub repository, and the options for it.
        found: what `find_map` found there.
    """
    if found is None or not found.is_alone:
        return model, dict(hub)
    # The revision is that of the map; its base names its own.
    return found.base, {**hub, "revision": found.config["base_revision"]}


def read_base_defaults(model: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """The call defaults of a model without its Diamond Map."""
    config = _declared(model, subfolder=MAP_FOLDER, **hub) or {}
    return config.get("base_defaults", config.get("defaults", {}))


def _declared(model: str | os.PathLike[str], **options: Any) -> dict[str, Any] | None:
    """The declaration of a model; None if it has none."""
    try:
        return read_config(model, **options)
    except LocalEntryNotFoundError:
        # Stock models declare nothing, so that most of those who are offline miss nothing.
        level = logging.INFO if options.get("local_files_only") else logging.WARNING
        reason = "it is not in the cache, and the Hub cannot be reached"
        logger.log(level, "%s was not looked at for a Diamond Map: %s", model, reason)
    except (FileNotFoundError, EntryNotFoundError) as error:
        declared = Path(model) / (options.get("subfolder") or "") / CONFIG_NAME
        if os.path.lexists(declared) and not declared.is_file():
            raise ForeignFileError(
                f"'{declared}' is a folder, or a link to nothing; take the file from where the model was saved"
            ) from error
    return None


def check_class(model: str | os.PathLike[str], **hub: Any) -> str:
    """Checks that a pipeline's class is supported, and returns its name.

    Args:
        model: folder or Hub repository.

    Raises:
        TypeError: the class is not supported.
        ValueError: the configuration of the pipeline does not name one, or a folder has none that can be read.
        OSError: the Hub has no such configuration, or cannot be reached.
    """
    try:
        name = DiffusionPipeline.load_config(model, **hub)["_class_name"]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        fault = "is nested too deep" if isinstance(error, RecursionError) else "does not name the class of a pipeline"
        raise ValueError(f"the model_index.json of {model} {fault}; take it from where the model was saved") from error
    except (OSError, ValueError) as error:
        if not os.path.isdir(model):
            raise
        raise ValueError(
            f"the model_index.json of {model} is missing or no JSON; take it from where the model was saved"
        ) from error
    # A community pipeline names a file of code too.
    name = "/".join(map(str, name)) if isinstance(name, list | tuple) else str(name)
    check_supported(name)
    return name


def loader_of(pipeline_class: str) -> type[DiffusionPipeline]:
    """The class whose `from_pretrained` loads pipelines of a supported class: diffusers knows its own by name."""
    return check_supported(pipeline_class).pipeline_class or DiffusionPipeline


def class_of(pipeline_class: str) -> Any:
    """A supported class of pipelines by its name."""
    return check_supported(pipeline_class).pipeline_class or getattr(diffusers, pipeline_class)


def single_file_class(checkpoint: str | os.PathLike[str], options: Mapping[str, Any]) -> type[DiffusionPipeline]:
    """The stock pipeline class that loads a checkpoint file.

    Args:
        checkpoint: a file, or its address on the Hub.
        options: options of the stock `from_single_file`. The class is found from `config` if given, else from the
            checkpoint's keys.

    Raises:
        TypeError: the class is not supported, or has no `from_single_file`.
    """
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    config = options.get("config")
    if config is None:
        keys = load_single_file_checkpoint(str(checkpoint), **hub)
        config = fetch_diffusers_config(keys)["pretrained_model_name_or_path"]
    name = check_class(config, **hub)
    loader: type[DiffusionPipeline] = class_of(name)
    if not hasattr(loader, "from_single_file"):
        raise TypeError(f"stock diffusers cannot load {name} from a single file; save it as a folder first")
    return loader
