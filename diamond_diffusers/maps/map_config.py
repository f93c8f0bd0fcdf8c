"""The declaration of a saved model, which is not trusted: its call defaults and its Diamond Map, if it has one."""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

from diffusers.utils.torch_utils import unwrap_module
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError

from ..families.base import Family
from ..files.foreign import MAX_DEPTH, ForeignFileError, parse_json, read_json
from ..files.json_forms import fitted, whole_numbers

CONFIG_NAME = "diamond_map_config.json"
FORMAT_VERSION = 1
GUIDANCE_ARGUMENTS = ("guidance_scale", "true_cfg_scale")
"""Arguments of a call that a map has baked in, where its defaults name them."""
REMEDY = "take the file from where the model was saved"

# Settings of a network that leave the shapes of its weights alone.
_NOT_SHAPES = ("sample_size", "quantization_config")
_LONGEST_NAME = 4096
_LARGEST_COUNT = 100_000
_COUNTS = ("height", "width", "num_inference_steps", "num_images_per_prompt", "max_sequence_length")


class _MethodForm(TypedDict):
    """The serial form of a method, with its options beside the name."""

    name: str


_FORMS = {
    **dict.fromkeys(_COUNTS, int | None),
    **dict.fromkeys(GUIDANCE_ARGUMENTS, float | None),
    "reward_scale": float,
    "alignment": str | _MethodForm,
    "reward": str | None,
    "negative_prompt": str | list[str] | None,
}
"""Of call defaults."""


@dataclass(frozen=True)
class _Declaration:
    format_version: int
    family: str
    defaults: dict[str, Any]
    base_defaults: dict[str, Any]


@dataclass(frozen=True)
class _MapDeclaration(_Declaration):
    base_model: str | None
    base_revision: str | None
    license: str | None
    base_config: dict[str, Any]
    path: dict[str, Any]
    condition_on_observation: bool
    training: dict[str, Any]


_MAY_BE_MISSING: dict[str, Any] = {"base_defaults": {}}
_MAY_BE_MISSING_OF_A_MAP = {**_MAY_BE_MISSING, "license": None, "condition_on_observation": False}


def read_config(source: str | PathLike[str], **hub: Any) -> dict[str, Any]:
    """Reads the declaration of a model: its call defaults, and its Diamond Map if it has one.

    Args:
        source: folder or Hub repository.
        **hub: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        FileNotFoundError: there is no such declaration.
        ValueError: there is no such folder or repository, or the declaration cannot be read, is not of a version that
            this package reads, or holds values that it must not.
    """
    file = find_file(source, CONFIG_NAME, **hub)
    config = read_json(file, REMEDY)
    _check_declaration(config, f"'{file}'", REMEDY)
    return config


def read_map_config(source: str | PathLike[str], **hub: Any) -> dict[str, Any]:
    """The configuration of a saved map; arguments as of `read_config`.

    Raises:
        FileNotFoundError: there is no map.
        ValueError: the declaration has no map, only defaults; or as for `read_config`.
    """
    config = read_config(source, **hub)
    if "base_config" not in config:
        raise ValueError(f"{source} declares defaults of a model but no Diamond Map; name another folder or repository")
    return config


def config_text(config: Mapping[str, Any]) -> str:
    """The text of a declaration's file.

    Raises:
        TypeError: it holds an object that JSON cannot represent.
        ValueError: `read_config` would refuse it.
    """
    text = json.dumps(_plain(config, ""), indent=2) + "\n"
    name, remedy = "what would be saved", "change it first"
    _check_declaration(parse_json(text, name, remedy), name, remedy)
    return text


def declare_defaults(family: str, defaults: Mapping[str, Any], base_defaults: Mapping[str, Any] | None = None) -> str:
    """The declaration of a model without a Diamond Map; errors as of `config_text`."""
    config = {"format_version": FORMAT_VERSION, "family": family, "defaults": defaults}
    return config_text(config if base_defaults is None else {**config, "base_defaults": base_defaults})


def declare_map(
    family: Family,
    defaults: Mapping[str, Any],
    base_defaults: Mapping[str, Any] | None = None,
    *,
    base_model: str | None,
    base_revision: str | None,
    license: str | None,
    training: Mapping[str, Any],
    condition_on_observation: bool = False,
) -> str:
    """The declaration of a map of a model; errors as of `config_text`.

    Args:
        defaults, base_defaults: defaults of calls with the map and without it; None if the base is saved elsewhere.
        base_model, base_revision, license, training, condition_on_observation: as of `save_diamond_map`.
    """
    config = {
        "format_version": FORMAT_VERSION,
        "family": family.name,
        "base_model": base_model,
        "base_revision": base_revision,
        "license": license,
        "base_config": _shapes(family),
        "path": _path(family),
        "condition_on_observation": condition_on_observation,
        "training": training,
        "defaults": defaults,
    }
    return config_text(config if base_defaults is None else {**config, "base_defaults": base_defaults})


def check_base(family: Family, config: Mapping[str, Any]) -> None:
    """Checks that a map, by its configuration, was distilled from a base like this one.

    Raises:
        ValueError: it was not; the error names the first difference.
    """
    check_base_config(family.name, {**_shapes(family), **_path(family)}, config)


def check_base_config(family: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """`check_base` for a base that is not loaded.

    Args:
        family: name of the base's family.
        settings: those of the base's network, as JSON values; what they do not name is not compared.
        config: the map's configuration.
    """
    wanted = f"load it on {config['base_model']}" if config.get("base_model") else "load it on its own base model"
    if config["family"] != family:
        raise ValueError(
            f"the Diamond Map is for a {str(config['family'])[:60]} model, but this is a {family} model; {wanted}"
        )
    for name, value in {**config["base_config"], **config["path"]}.items():
        # A later version of diffusers may have further settings, or none of this name.
        if name in settings and settings[name] != value:
            raise ValueError(
                f"the Diamond Map is for a base whose {name} is {reprlib.repr(value)}, but that of this "
                f"{family} model is {reprlib.repr(settings[name])}; {wanted}"
            )


def find_file(
    source: str | PathLike[str],
    name: str,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """A file of a folder or Hub repository, on this machine.

    Raises:
        FileNotFoundError, EntryNotFoundError: there is no such file.
        ValueError: there is no such folder or repository.
    """
    folder = Path(source)
    if os.path.isfile(folder):
        raise ValueError(f"{source} is a file; name the folder that it is in")
    if not os.path.isdir(folder):
        try:
            file_on_hub = hf_hub_download(
                str(source),
                name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else os.fspath(cache_dir),
                local_files_only=local_files_only,
                force_download=force_download,
            )
        except HFValidationError as error:
            raise ValueError(f"{source} is neither a folder nor the name of a repository on the Hub") from error
        return Path(file_on_hub)
    file = folder / (subfolder or "") / name
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} holds no {name}, so it is no Diamond Map; name another folder")
    return file


def _check_declaration(config: Any, name: str, remedy: str) -> None:
    """Raises a `ForeignFileError` if the content is not a valid declaration."""
    version = fitted(config, dict[str, Any], name, remedy).get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise ForeignFileError(
            f"{name} has format_version {reprlib.repr(version)}, but this package reads {FORMAT_VERSION}; "
            "upgrade diamond-diffusers"
        )
    is_map = any(key in config for key in _MapDeclaration.__annotations__)
    form, missing = (_MapDeclaration, _MAY_BE_MISSING_OF_A_MAP) if is_map else (_Declaration, _MAY_BE_MISSING)
    fitted({**missing, **config}, form, name, remedy)
    for key in ("family", "base_model", "base_revision", "license"):
        _check_name(config.get(key), f"{key} of {name}", remedy)
    for key in ("defaults", "base_defaults"):
        _check_defaults(config.get(key, {}), f"{key} of {name}", remedy)


def _check_name(value: str | None, name: str, remedy: str) -> None:
    if value is not None and not (0 < len(value) <= _LONGEST_NAME and value.isprintable()):
        raise ForeignFileError(f"{name} is {reprlib.repr(value)}, which is no name; {remedy}")


def _check_defaults(defaults: Mapping[str, Any], name: str, remedy: str) -> None:
    for key, form in _FORMS.items():
        if key in defaults:
            value = fitted(defaults[key], form, f"{key} among the {name}", remedy)
            if isinstance(value, float) and not math.isfinite(value):
                raise ForeignFileError(f"{key} among the {name} is {value}, which is no number; {remedy}")
    method = defaults.get("alignment")
    for place, number in whole_numbers(method if isinstance(method, Mapping) else {}, "alignment"):
        if number > _LARGEST_COUNT:
            raise ForeignFileError(f"{place} among the {name} is above {_LARGEST_COUNT}; {remedy}")
    for key in _COUNTS:
        count = defaults.get(key)
        if count is not None and not 1 <= count <= _LARGEST_COUNT:
            raise ForeignFileError(
                f"{key} among the {name} is {reprlib.repr(count)}, not a whole number from 1 to {_LARGEST_COUNT}; "
                f"{remedy}"
            )


def _plain(value: Any, place: str, depth: int = 0) -> Any:
    """A value as dictionaries, lists and the other values that JSON can hold.

    Raises:
        TypeError: there is another object in it.
        ValueError: it contains itself, or holds a number that is not finite.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{place[:60]}... is nested deeper than {MAX_DEPTH} levels, and cannot be saved; leave it out")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place or 'it'} has the key {reprlib.repr(key)}, which is no text; name it otherwise")
        return {key: _plain(item, f"{place}[{key!r}]" if place else key, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}, which cannot be saved; give a finite number, or leave it out")
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{place} is {reprlib.repr(value)}, which cannot be saved; give its name or number, or leave it out"
    )


def _shapes(family: Family) -> dict[str, Any]:
    """The settings of a network that determine the shapes of its weights, as JSON values."""
    network = unwrap_module(family.network_module)
    settings = {
        name: value
        for name, value in dict(network.config).items()
        if not name.startswith("_") and name not in _NOT_SHAPES
    }
    return json.loads(json.dumps({"network": type(network).__name__, **settings}, default=str))


def _path(family: Family) -> dict[str, Any]:
    """The kind of prediction of the network, and its path."""
    path = family.path
    return {"path": type(path).__name__, "prediction_type": getattr(path, "prediction_type", "velocity")}
