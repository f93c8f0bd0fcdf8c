"""Loads the base model, and finds the layers of it that a map adapts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..families.registry import check_supported
from ..files.foreign_models import UNLOADABLE, why_unloadable
from ..maps.diamond_map import DiamondMap
from ..maps.map_config import read_map_config
from ..maps.storage import load_diamond_map
from ..pipelines.loading import EMBEDDED_MODEL, base_of, check_class, class_of, embedded_model, find_map
from ..pipelines.pipeline import DiamondMapPipeline
from ..pipelines.quantization import check_quantization, quantization_config
from .errors import TrainingError

if TYPE_CHECKING:
    from ..families.base import Family
    from .options.records import MapOptions, ModelOptions

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_base(options: ModelOptions, dtype: torch.dtype) -> DiamondMapPipeline:
    """The base model, without its Diamond Map if it comes with one; its autoencoder is in float32.

    A base in fp8 is loaded in the precision of the computation, since its weights are cast when the map is in it.

    Raises:
        TrainingError: it cannot be loaded.
    """
    name = options.pretrained_model_name_or_path
    hub = {"revision": options.revision, "variant": options.variant, "cache_dir": options.cache_dir}
    hub = {key: value for key, value in hub.items() if value is not None}
    dtypes = {"default": dtype, "vae": torch.float32}
    try:
        hub |= _quantised(options, hub, dtype)
        pipe = DiamondMapPipeline.from_pretrained(None if options.is_miniature else name, dtype=dtypes, **hub)
    except UNLOADABLE as error:
        reason = why_unloadable(error)
        raise TrainingError(f"--pretrained_model_name_or_path {name} cannot be loaded: {reason}") from error
    if pipe.family.posterior_map is not None:
        pipe.unload_diamond_map()
    pipe.set_progress_bar_config(disable=True)
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False).eval()
    return pipe


def check_base_can_be_quantised(options: ModelOptions, device: torch.device) -> None:
    """Raises a `TrainingError` where the base cannot have the form that the options ask for here."""
    if options.quantize is None:
        return
    try:
        check_quantization(options.quantize, device.type, None)
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _quantised(options: ModelOptions, hub: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` takes to quantise the base while it is loaded."""
    if options.quantize is None:
        return {}
    name = embedded_model() if options.is_miniature else options.pretrained_model_name_or_path
    assert name is not None, "the options are checked"
    where = {key: value for key, value in hub.items() if key != "variant"}
    place, where = base_of(name, where, find_map(name, where))
    class_name = check_class(place, **where)
    index = class_of(class_name).load_config(place, **where)
    config = quantization_config(options.quantize, index, check_supported(class_name).network_name, dtype)
    return {} if config is None else {"quantization_config": config}


def check_initial_map(options: MapOptions, cache_dir: str | None) -> None:
    """Raises a `TrainingError` where the map that training is to begin with is not there; before the base is loaded."""
    if options.initial_map is None:
        return
    try:
        place, hub = _place_of_map(options.initial_map, cache_dir)
        read_map_config(place, **hub)
    except UNLOADABLE as error:
        raise _unloadable_map(options.initial_map, error) from error


def _place_of_map(name: str, cache_dir: str | None) -> tuple[str | Path, dict[str, Any]]:
    """Where a map is, alone or beside its base, and the options of the Hub for it."""
    place: str | Path = embedded_model() if name == EMBEDDED_MODEL else name
    hub = {} if cache_dir is None else {"cache_dir": cache_dir}
    found = find_map(place, hub)
    return place, hub if found is None else dict(found.hub)


def _unloadable_map(name: str, error: Exception) -> TrainingError:
    return TrainingError(f"--initial_map {name} cannot be loaded: {why_unloadable(error)}")


def new_map(options: MapOptions, family: Family, cache_dir: str | None = None) -> DiamondMap:
    """The map that training begins with: an untrained one, which is the base, or a saved one.

    Args:
        cache_dir: folder for downloads.

    Raises:
        TrainingError: the base cannot carry a map, or not the saved one.
    """
    try:
        if options.initial_map is None:
            layers = lora_layers(options, family.network_module)
            return DiamondMap(family, options.rank, options.lora_alpha, layers, options.condition_on_observation)
        place, hub = _place_of_map(options.initial_map, cache_dir)
        diamond_map = load_diamond_map(family, place, **hub)
    except UNLOADABLE as error:
        if options.initial_map is None:
            raise TrainingError(why_unloadable(error)) from error
        raise _unloadable_map(options.initial_map, error) from error
    # It is going to be of another training.
    diamond_map.guidance, diamond_map.training_facts = {}, {}
    diamond_map.base_model = diamond_map.base_revision = diamond_map.license = None
    return diamond_map


def lora_layers(options: MapOptions, network: nn.Module) -> list[str] | None:
    """Names or name endings of the modules to adapt, from the options; None for the default of `DiamondMap`.

    Raises:
        TrainingError: the network has no module of such a name.
    """
    if not options.lora_layers:
        return None
    endings = [ending.strip() for ending in options.lora_layers.split(",")]
    names = [name for name, _ in network.named_modules()]
    for ending in endings:
        if not any(name == ending or name.endswith(f".{ending}") for name in names):
            raise TrainingError(
                f"--lora_layers names {ending!r}, which no module of the {type(network).__name__} ends in"
            )
    return endings
