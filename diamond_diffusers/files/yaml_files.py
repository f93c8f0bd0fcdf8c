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
            a short file may stand for an endless value.
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
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ForeignFileError(f"'{path}' is no YAML ({reason}); {remedy}") from error
