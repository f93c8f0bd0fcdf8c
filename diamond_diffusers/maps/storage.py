"""Diamond Maps on disk: their configuration, a LoRA as stock diffusers reads it, and the conditioning layers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.loaders.lora_pipeline import LORA_WEIGHT_NAME_SAFE
from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..families.base import Family
from ..files.foreign import parse_json
from ..files.json_forms import fitted
from ..files.staging import staged
from .diamond_map import DiamondMap, check_can_be_adapted, conditioning_layers, sites_of
from .map_config import CONFIG_NAME, GUIDANCE_ARGUMENTS, REMEDY, check_base, declare_map, find_file, read_map_config

LORA_NAME = LORA_WEIGHT_NAME_SAFE
CONDITIONING_NAME = "diamond_map_conditioning.safetensors"
MAP_FILES = (CONFIG_NAME, LORA_NAME, CONDITIONING_NAME)
"""What a saved map consists of."""

_CONDITIONING = "conditioning."


def save_diamond_map(
    folder: str | PathLike[str],
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
    """Writes a map, without its base, whole or not at all.

    Args:
        folder: the target, which is created; files of an earlier map in it are replaced.
        defaults: values for arguments of a call that are not given; they hold the guidance that is baked in.
        training: facts about the distillation, for its reader.
        base_model: Hub repository or folder of the base, or `miniature`. None takes it from the loaded map, or else
            from where the base was loaded.
        base_revision: revision of the base on the Hub.
        base_defaults: defaults of the base alone, if it is saved beside the map.
        license: name of the licence on the Hub; None for that of the loaded map.
        weights: weights to save in place of the map's own, named as by `DiamondMap.weights`.

    Raises:
        TypeError, ValueError: the defaults or facts hold a value that cannot be saved, or a weight is not finite;
            raised before anything is written.
    """
    family = diamond_map.family
    if base_model is None and diamond_map.base_model is not None:
        base_model, base_revision = diamond_map.base_model, diamond_map.base_revision
    config = declare_map(
        family,
        defaults,
        base_defaults,
        base_model=base_model or family.pipeline.config.get("_name_or_path") or None,
        base_revision=base_revision,
        license=license or diamond_map.license,
        condition_on_observation=diamond_map.condition_on_observation,
        training=training,
    )
    weights = diamond_map.weights() if weights is None else weights
    weights = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"the weight {name!r} of the Diamond Map is not made of finite numbers; train it anew")
    network = family.network_name
    conditioning = {
        name.removeprefix(_CONDITIONING): w for name, w in weights.items() if name.startswith(_CONDITIONING)
    }
    lora = {f"{network}.{name}": w for name, w in weights.items() if not name.startswith(_CONDITIONING)}
    targets = sorted({name.partition(".lora_")[0] for name in weights if not name.startswith(_CONDITIONING)})
    adapter = {"r": diamond_map.rank, "lora_alpha": diamond_map.lora_alpha, "target_modules": targets}
    metadata = {f"{network}.{key}": value for key, value in adapter.items()}
    with staged(folder) as stage:
        save_file(lora, stage.path / LORA_NAME, {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(metadata)})
        save_file(conditioning, stage.path / CONDITIONING_NAME, {"format": "pt"})
        (stage.path / CONFIG_NAME).write_text(config)


@dataclass(frozen=True)
class Adapter:
    """The LoRA of a map, as its file declares it."""

    r: int
    lora_alpha: float
    target_modules: list[str]


@dataclass(frozen=True)
class SavedMap:
    """The contents of a map's files, after the check that they belong together.

    Attributes:
        source: folder or Hub repository of the files.
        config: the configuration, as from `read_map_config`.
        network_name: the component that the LoRA is for.
        adapter: the declaration of the LoRA.
        weights: weights of the map, named as by `DiamondMap.weights`.
    """

    source: str | PathLike[str]
    config: dict[str, Any]
    network_name: str
    adapter: Adapter
    weights: dict[str, Tensor]

    def around(self, family: Family, device: torch.device | None = None) -> DiamondMap:
        """Puts the map on a loaded base, without touching the global random state; on any error the base is as it was.

        Args:
            family: an ordinary model of the shapes that the map was distilled from.
            device: device of the conditioning layers; None for the CPU.

        Raises:
            ValueError: the weights do not fit, or the network cannot carry a map.
        """
        self.check_fits(family)
        config, adapter = self.config, self.adapter
        observes = config.get("condition_on_observation", False)
        # The weights that are drawn first are replaced at once.
        with torch.random.fork_rng():
            diamond_map = DiamondMap(family, adapter.r, adapter.lora_alpha, adapter.target_modules, observes)
        try:
            diamond_map.load_weights(self.weights)
            diamond_map.conditioning.to(device)
        except BaseException:
            diamond_map.remove()
            raise
        defaults = config["defaults"]
        diamond_map.guidance = {name: defaults[name] for name in GUIDANCE_ARGUMENTS if name in defaults}
        diamond_map.training_facts, diamond_map.license = config["training"], config.get("license")
        diamond_map.base_model, diamond_map.base_revision = config["base_model"], config["base_revision"]
        return diamond_map

    def check_fits(self, family: Family) -> None:
        """Checks that a network has a place for each of the weights, without allocating memory for them.

        Raises:
            ValueError: a weight does not fit, LoRAs are fused into the network's weights, or its layers are offloaded.
        """
        network, sites = unwrap_module(family.network_module), sites_of(family)
        check_base(family, self.config)
        check_can_be_adapted(network)
        remedy = f"does not fit the {family.network_name} of this {family.name} model; use its own base"
        if self.network_name != family.network_name:
            raise ValueError(f"the {LORA_NAME} of {self.source}, for a {self.network_name}, {remedy}")
        layers = dict(network.named_modules())
        for name in self.adapter.target_modules:
            down, up = self.weights[f"{name}.lora_A.weight"].shape, self.weights[f"{name}.lora_B.weight"].shape
            if name not in layers or (tuple(down[1:]), (up[0], *up[2:])) != _widths(layers[name]):
                raise ValueError(f"the LoRA of the Diamond Map {self.source} for {name!r} {remedy}")
        with torch.device("meta"):
            conditioning = conditioning_layers(network, sites, self.config.get("condition_on_observation", False))
        expected = {f"{_CONDITIONING}{name}": weight.shape for name, weight in conditioning.named_parameters()}
        found = {name: weight.shape for name, weight in self.weights.items() if name.startswith(_CONDITIONING)}
        odd = sorted(dict(expected.items() ^ found.items()))
        if odd:
            raise ValueError(f"the weight {odd[0]!r} of the Diamond Map {self.source} {remedy}")


def read_diamond_map(source: str | PathLike[str], family: Family | None = None, **hub: Any) -> SavedMap:
    """Reads the files of a saved map.

    Args:
        source: folder or Hub repository.
        family: the family that the map has to be for; None if the base is not loaded yet.
        **hub: as of `read_config`.

    Raises:
        FileNotFoundError: there is no map.
        ValueError: the map is for another base, or its files are damaged or do not belong together.
    """
    config = read_map_config(source, **hub)
    if family is not None:
        check_base(family, config)
    lora, metadata = _read(source, LORA_NAME, **hub)
    conditioning, _ = _read(source, CONDITIONING_NAME, **hub)
    observes = config.get("condition_on_observation", False)
    if observes != any(name.startswith("observation.") for name in conditioning):
        raise ValueError(
            f"the {CONFIG_NAME} of {source} has condition_on_observation {observes}, but its {CONDITIONING_NAME} is of "
            "a map with the other setting; take all files from one map"
        )
    network = next(iter(lora), "").partition(".")[0]
    adapter = _read_adapter(metadata, network, f"the {LORA_NAME} of {source}")
    weights = {name.removeprefix(f"{network}."): weight for name, weight in lora.items()}
    _check_rank(adapter, weights, f"the {LORA_NAME} of {source}")
    weights |= {f"{_CONDITIONING}{name}": weight for name, weight in conditioning.items()}
    return SavedMap(source, config, network, adapter, weights)


def load_diamond_map(family: Family, source: str | PathLike[str], **hub: Any) -> DiamondMap:
    """A saved map around a loaded base; arguments and errors as of `read_diamond_map` and `SavedMap.around`."""
    return read_diamond_map(source, family, **hub).around(family)


def _read_adapter(metadata: Mapping[str, str], network: str, name: str) -> Adapter:
    """The declaration of a network's LoRA in a LoRA file."""
    written = parse_json(metadata.get(LORA_ADAPTER_METADATA_KEY, "{}"), f"the metadata of {name}", REMEDY)
    written = fitted(written, dict[str, Any], f"the metadata of {name}", REMEDY)
    declared = {key.removeprefix(f"{network}."): value for key, value in written.items()}
    if not declared.keys() >= Adapter.__annotations__.keys():
        raise ValueError(f"{name} does not say the rank, alpha and layers of the LoRA; {REMEDY}")
    declared = {key: declared[key] for key in Adapter.__annotations__}
    adapter = fitted(declared, Adapter, f"the metadata of {name}", REMEDY)
    if adapter.r < 1 or not 0 < adapter.lora_alpha < math.inf:
        raise ValueError(
            f"{name} declares rank {adapter.r} and alpha {adapter.lora_alpha:g}, not above 0 or not finite; {REMEDY}"
        )
    return adapter


def _check_rank(adapter: Adapter, weights: Mapping[str, Tensor], name: str) -> None:
    """Raises a `ValueError` where a LoRA's weights are not those of its declared layers, each of its declared rank."""
    expected = {f"{target}.lora_{half}.weight" for target in adapter.target_modules for half in "AB"}
    odd = sorted(expected ^ weights.keys())
    if odd:
        word = "lacks" if odd[0] in expected else "does not declare"
        raise ValueError(f"{name} {word} {odd[0]!r}; {REMEDY}")
    for target in adapter.target_modules:
        down, up = weights[f"{target}.lora_A.weight"].shape, weights[f"{target}.lora_B.weight"].shape
        if len(down) < 2 or len(up) < 2 or (down[0], up[1]) != (adapter.r, adapter.r):
            raise ValueError(
                f"{name} declares rank {adapter.r}, but its weights for {target!r} have shapes {list(down)} and "
                f"{list(up)}; {REMEDY}"
            )


def _widths(layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of the two halves of a layer's LoRA, without the rank; None if the layer is no linear map."""
    layer = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    if isinstance(layer, nn.Linear):
        return (layer.in_features,), (layer.out_features,)
    if isinstance(layer, _ConvNd):
        # The second half looks at one pixel.
        return tuple(layer.weight.shape[1:]), (layer.out_channels, *(1 for _ in layer.kernel_size))
    return None


def _read(source: str | PathLike[str], name: str, **hub: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file of a map, and its metadata."""
    try:
        file = find_file(source, name, **hub)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{source} holds a {CONFIG_NAME} but no {name}; take all files from one map") from error
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}); {REMEDY}") from error
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"{name!r} of {file} is not made of finite numbers; {REMEDY}")
    return tensors, metadata
