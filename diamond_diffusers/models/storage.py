"""Diamond Maps on disk: their configuration, a LoRA as stock diffusers reads it, and the conditioning layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import LORA_WEIGHT_NAME_SAFE
from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
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


def save_diamond_map(
    folder: str | PathLike,
    diamond_map: DiamondMap,
    defaults: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    base_defaults: Mapping[str, Any] | None = None,
    license: str | None = None,
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
        base_defaults: defaults of the base alone, where it is saved beside the map.
        license: as the Hub names it; None for what a loaded map says.
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
        "license": license or diamond_map.license,
        "base_config": _shapes(backbone),
        "path": _path(backbone),
        "condition_on_observation": diamond_map.condition_on_observation,
        "training": dict(training),
        "defaults": dict(defaults),
        **({} if base_defaults is None else {"base_defaults": dict(base_defaults)}),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def read_config(source: str | PathLike, **hub: Any) -> dict[str, Any]:
    """What a folder or Hub repository declares of a model: defaults of its calls, and its Diamond Map if it has one.

    Args:
        source: folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: there is no such declaration.
        ValueError: there is no such folder or repository, or the declaration cannot be read or is not of a version that
            this package reads.
    """
    file = _find(source, CONFIG_NAME, **hub)
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); take the file from where the map was saved") from error
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
        ValueError: there are defaults alone, or it is not of a version that this package reads.
    """
    config = read_config(source, **hub)
    if "base_config" not in config:
        raise ValueError(f"{source} declares defaults of a model but no Diamond Map; name another folder or repository")
    return config


@dataclass(frozen=True)
class SavedMap:
    """What the files of a map hold.

    Attributes:
        source: where they are.
        config: as of `read_map_config`.
        adapter: the LoRA's `r`, `lora_alpha` and `target_modules`.
        weights: of the map, named as by `DiamondMap.weights`.
    """

    source: str | PathLike
    config: dict[str, Any]
    adapter: dict[str, Any]
    weights: dict[str, Tensor]

    def around(self, backbone: Backbone) -> DiamondMap:
        """The map on a loaded base, whose random state it leaves alone.

        Raises:
            ValueError: the weights do not fit, or the network cannot carry a map.
        """
        config, adapter = self.config, self.adapter
        observes = config.get("condition_on_observation", False)
        # The weights that are drawn first are replaced at once.
        with torch.random.fork_rng():
            diamond_map = DiamondMap(backbone, adapter["r"], adapter["lora_alpha"], adapter["target_modules"], observes)
        try:
            diamond_map.load_weights(self.weights)
        except ValueError:
            diamond_map.remove()
            raise
        defaults = config["defaults"]
        diamond_map.guidance = {name: defaults[name] for name in GUIDANCE_ARGUMENTS if name in defaults}
        diamond_map.training_facts, diamond_map.license = config["training"], config.get("license")
        diamond_map.base_model, diamond_map.base_revision = config["base_model"], config["base_revision"]
        return diamond_map


def read_diamond_map(backbone: Backbone, source: str | PathLike, **hub: Any) -> SavedMap:
    """Reads a saved map for a loaded base, which stays as it is.

    Args:
        backbone: an ordinary model of the shapes that the map was distilled from.
        source: folder or Hub repository.
        **hub: as of `read_config`.

    Raises:
        FileNotFoundError: there is no map.
        ValueError: the map is for another base, or its files are damaged or do not belong together.
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
    written = json.loads(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    adapter = {name: written.get(f"{prefix}{name}") for name in ("r", "lora_alpha", "target_modules")}
    if None in adapter.values():
        raise ValueError(
            f"the {LORA_NAME} of {source} does not say the rank, alpha and layers of the LoRA for the "
            f"{backbone.network_name}; take the file from where the map was saved"
        )
    weights = {name.removeprefix(prefix): weight for name, weight in lora.items()}
    weights |= {f"conditioning.{name}": weight for name, weight in conditioning.items()}
    return SavedMap(source, config, adapter, weights)


def load_diamond_map(backbone: Backbone, source: str | PathLike, **hub: Any) -> DiamondMap:
    """A saved map around a loaded base; arguments and errors as of `read_diamond_map` and `SavedMap.around`."""
    return read_diamond_map(backbone, source, **hub).around(backbone)


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
    network = unwrap_module(backbone.model)
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
    force_download: bool = False,
) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "force_download": force_download,
        }
        try:
            return Path(hf_hub_download(str(source), name, subfolder=subfolder, **options))
        except HFValidationError as error:
            raise ValueError(f"{source} is neither a folder nor the name of a repository on the Hub") from error
    file = folder / (subfolder or "") / name
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {name}, so it is no Diamond Map; name another folder")
    return file


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); take it from where the map was saved") from error
