"""Reads options from a YAML file, with their values as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...core.wording import did_you_mean, shown
from ...files.foreign import ForeignFileError, read_text
from .fields import Option

Setting = str | bool | None

_SWITCHES = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"), False)


class ConfigError(ValueError):
    """A file of options cannot be used. The message says why, in one sentence."""


class _TextLoader(yaml.SafeLoader):
    """Reads values as text, so that 0123 and 1e-4 mean the same as on the command line; null is read as None."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f"{key!r} comes twice")
        return super().construct_mapping(node, deep)


def read_config(file: Path) -> dict[str, str | None]:
    """The options that a file sets, as text; lists are joined by commas.

    Raises:
        ConfigError: the file is no mapping of names to values or lists of values.
    """
    try:
        settings = yaml.load(read_text(file), _TextLoader) or {}
    except ForeignFileError as error:
        raise ConfigError(f"--config: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--config {file} is no YAML: {' '.join(str(error).split())}; mend it there") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"--config {file} is no mapping of option names to values; write lines such as rank: 8")
    return {str(name): _text(file, name, value) for name, value in settings.items()}


def _text(file: Path, name: object, value: object) -> str | None:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if not isinstance(value, str | None):
        raise ConfigError(f"--config {file} sets {name} to {shown(value)}; give a value or a list of values")
    return value


def as_defaults(file: Path, settings: Mapping[str, str | None], options: Sequence[Option]) -> dict[str, Setting]:
    """Settings of a file as defaults of a parser, which converts the texts itself; by the names of its results.

    Raises:
        ConfigError: a setting is no option, or its value is not one that the option can have.
    """
    by_flag, defaults = {option.flag: option for option in options}, {}
    for name, value in settings.items():
        if name not in by_flag:
            raise ConfigError(
                f"--config {file} sets {name!r}, which is no option{did_you_mean(name, [*by_flag])}; remove it"
            )
        defaults[by_flag[name].flag] = _default(file, by_flag[name], value)
    return defaults


def _default(file: Path, option: Option, value: str | None) -> Setting:
    if option.kind is bool:
        if str(value).lower() not in _SWITCHES:
            raise ConfigError(f"--config {file} sets {option.flag} to {value}; give true or false")
        return _SWITCHES[str(value).lower()]
    if value is None and option.default is not None:
        raise ConfigError(f"--config {file} sets {option.flag} to null; give a value, or leave it out")
    if value is not None and option.choices is not None and option.convert(value) not in option.choices():
        choices = ", ".join(option.choices())
        raise ConfigError(f"--config {file} sets {option.flag} to {value!r}; choose one of {choices}")
    return value
