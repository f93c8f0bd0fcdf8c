"""Diamond Maps on disk: their configuration, a LoRA as stock diffusers reads it, and the conditioning layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import hf_hub_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..backbones.base import Backbone
from .diamond_map import DiamondMap

CONFIG_NAME = "diamond_map_config.json"
LORA_NAME = LORA_WEIGHT_NAME_SAFE
CONDITIONING_NAME = "diamond_map_conditioning.safetensors"
MAP_FILES = (CONFIG_NAME, LORA_NAME, CONDITIONING_NAME)
"""What a saved map consists of."""

FORMAT_VERSION = 1
# Settings of a network that leave the shapes of its weights alone.
_NOT_SHAPES = ("sample_size", "quantization_config")


GUIDANCE_ARGUMENTS = ("guidance_scale", "true_cfg_scale")
"""Arguments of a call that a map has baked in, where its defaults name them."""


class MissingMapError(ValueError):
    """A folder or repository declares defaults alone."""


def save_diamond_map(
    folder: str | PathLike,
    diamond_map: DiamondMap,
    defaults: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a map, without its base.

    Args:
        folder: is created; files of a map in it are replaced.
        defaults: values for arguments of a call that are not given; they hold the guidance that is baked in.
        training: facts about the distillation, for its reader.
        base_model: Hub repository or folder of the base, or `miniature`; None for what a loaded map says, else for
            where the base was loaded from.
        base_revision: of the base on the Hub.
        weights: in place of the map's own, named as by `DiamondMap.weights`.
    """
    folder, backbone = Path(folder), diamond_map.backbone
    folder.mkdir(parents=True, exist_ok=True)
    weights = diamond_map.weights() if weights is None else weights
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    prefix, network = "conditioning.", backbone.network_name
    conditioning = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
    lora = {f"{network}.{name}": w for name, w in weights.items() if not name.startswith(prefix)}
    targets = sorted({name.partition(".lora_")[0] for name in weights if not name.startswith(prefix)})
    adapter = {"r": diamond_map.rank, "lora_alpha": diamond_map.lora_alpha, "target_modules": targets}
    metadata = {f"{network}.{key}": value for key, value in adapter.items()}
    save_file(lora, folder / LORA_NAME, {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata)})
    save_file(conditioning, folder / CONDITIONING_NAME, {"format": "pt"})
    if base_model is None and diamond_map.base_model is not None:
        base_model, base_revision = diamond_map.base_model, diamond_map.base_revision
    config = {
        "format_version": FORMAT_VERSION,
        "family": backbone.family,
        "base_model": base_model or backbone.pipeline.config.get("_name_or_path"),
        "base_revision": base_revision,
        "base_config": _shapes(backbone),
        "path": _path(backbone),
        "condition_on_observation": diamond_map.condition_on_observation,
        "training": dict(training),
        "defaults": dict(defaults),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def read_config(source: str | PathLike, **hub: Any) -> dict[str, Any]:
    """What a folder or Hub repository declares of a model: defaults of its calls, and its Diamond Map if it has one.

    Args:
        source: folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: there is no such declaration.
        ValueError: it is not of a version that this package reads.
    """
    file = _find(source, CONFIG_NAME, **hub)
    config = json.loads(file.read_text())
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{file} has format_version {config.get('format_version')!r}, but this package reads {FORMAT_VERSION}; "
            "upgrade diamond-diffusers"
        )
    return config


def read_map_config(source: str | PathLike, **hub: Any) -> dict[str, Any]:
    """The configuration of a saved map; arguments as of `read_config`.

    Raises:
        FileNotFoundError: there is no map.
        MissingMapError: there are defaults alone.
        ValueError: it is not of a version that this package reads.
    """
    config = read_config(source, **hub)
    if "base_config" not in config:
        raise MissingMapError(
            f"{source} declares defaults of a model but no Diamond Map; name another folder or repository"
        )
    return config


def load_diamond_map(backbone: Backbone, source: str | PathLike, **hub: Any) -> DiamondMap:
    """A saved map around a loaded base.

    Args:
        backbone: an ordinary model of the shapes that the map was distilled from.
        source: folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        FileNotFoundError: there is no map.
        ValueError: the map is for another base, or its files do not belong together.
    """
    config = read_map_config(source, **hub)
    check_base(backbone, config)
    prefix = f"{backbone.network_name}."
    lora, metadata = _read(_find(source, LORA_NAME, **hub))
    conditioning, _ = _read(_find(source, CONDITIONING_NAME, **hub))
    observes = config.get("condition_on_observation", False)
    if observes != any(name.startswith("observation.") for name in conditioning):
        raise ValueError(
            f"the {CONFIG_NAME} of {source} has condition_on_observation {observes}, but its {CONDITIONING_NAME} is of "
            "a map with the other setting; take all files from one map"
        )
    adapter = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    rank, lora_alpha, layers = (adapter[f"{prefix}{name}"] for name in ("r", "lora_alpha", "target_modules"))
    diamond_map = DiamondMap(backbone, rank, lora_alpha, layers, observes)
    weights = {name.removeprefix(prefix): weight for name, weight in lora.items()}
    weights |= {f"conditioning.{name}": weight for name, weight in conditioning.items()}
    try:
        diamond_map.load_weights(weights)
    except ValueError:
        diamond_map.remove()
        raise
    diamond_map.guidance = {name: config["defaults"][name] for name in GUIDANCE_ARGUMENTS if name in config["defaults"]}
    diamond_map.training_facts = config["training"]
    diamond_map.base_model, diamond_map.base_revision = config["base_model"], config["base_revision"]
    return diamond_map


def check_base(backbone: Backbone, config: Mapping[str, Any]) -> None:
    """Checks that a map, by its configuration, was distilled from a base like this one.

    Raises:
        ValueError: it was not; the error names the first difference.
    """
    wanted = f"load it on {config['base_model']}" if config.get("base_model") else "load it on its own base model"
    if config["family"] != backbone.family:
        raise ValueError(
            f"the Diamond Map is for a {config['family']} model, but this is a {backbone.family} model; {wanted}"
        )
    expected = {**config["base_config"], **config["path"]}
    actual = {**_shapes(backbone), **_path(backbone)}
    for name, value in expected.items():
        # A later version of diffusers may have further settings, or none of this name.
        if name in actual and actual[name] != value:
            raise ValueError(
                f"the Diamond Map is for a base whose {name} is {value!r}, but that of this {backbone.family} model is "
                f"{actual[name]!r}; {wanted}"
            )


def _shapes(backbone: Backbone) -> dict[str, Any]:
    """The settings of a network from which the shapes of its weights follow, as JSON has them."""
    network = backbone.model
    settings = {
        name: value
        for name, value in dict(network.config).items()
        if not name.startswith("_") and name not in _NOT_SHAPES
    }
    return json.loads(json.dumps({"network": type(network).__name__, **settings}, default=str))


def _path(backbone: Backbone) -> dict[str, Any]:
    """What the network predicts, and along which path."""
    path = backbone.path
    return {"path": type(path).__name__, "prediction_type": getattr(path, "prediction_type", "velocity")}


def _find(
    source: str | PathLike,
    name: str,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike | None = None,
    local_files_only: bool = False,
) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        return Path(hf_hub_download(str(source), name, subfolder=subfolder, **options))
    file = folder / (subfolder or "") / name
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {name}, so it is no Diamond Map; name another folder")
    return file


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
