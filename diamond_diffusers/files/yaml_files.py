"""Files of YAML that others wrote."""

from __future__ import annotations

from os import PathLike
from typing import Any

import yaml

from .foreign import MAX_DEPTH, ForeignFileError, read_text


def read_yaml(path: str | PathLike[str], remedy: str) -> Any:
    """The value that a file of YAML holds; `remedy` ends the sentence where it holds none.

    Raises:
        ForeignFileError: as `read_text`; or it is no YAML, is nested deeper than `MAX_DEPTH`, or has aliases, by which
            a short file may stand for an endless value, or has a key twice.
    """
    text = read_text(path)
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ForeignFileError(f"'{path}' has the alias *{event.anchor}; write its value out")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ForeignFileError(f"'{path}' is nested deeper than {MAX_DEPTH} levels; {remedy}")
        _check_keys(yaml.compose(text, yaml.SafeLoader), path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        # Python refuses numbers of thousands of digits.
        if isinstance(error, ForeignFileError):
            raise
        reason = " ".join(str(error).split())
        raise ForeignFileError(f"'{path}' is no YAML ({reason}); {remedy}") from error


def _check_keys(node: yaml.Node | None, path: str | PathLike[str]) -> None:
    """Raises a `ForeignFileError` for a key that a mapping has twice, of which YAML would take the last."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, path)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ForeignFileError(f"'{path}' has the key {key.value!r} twice; give it once")
            seen.add(str(key.value))
            _check_keys(value, path)
