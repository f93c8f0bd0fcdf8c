"""A remote reward from plain values, as a file or the command line has them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, get_type_hints

from ...core.conversions import Texts
from ...core.serial import UnknownOptionError, fitted_option
from .reward import RemoteReward


def remote_reward(name: str, options: Mapping[str, Any]) -> RemoteReward:
    """A remote reward of a name.

    Args:
        name: under which scores are reported.
        options: those of `RemoteReward` but the name, of which "url" is needed. A protocol, and the reader of a chat,
            is given by its name, or as a mapping with "name" and options; `timeouts`, `retries` and `prices` are
            mappings.

    Raises:
        UnknownOptionError: there is no such option.
        ValueError: an option is missing, has another type, or is refused.

    Example:
        >>> judge = remote_reward("judge", {"url": "http://localhost:8000", "retries": {"attempts": 2}})
        >>> judge.name, judge.retries.attempts
        ('judge', 2)
    """
    hints = get_type_hints(RemoteReward.__init__) | {"cache_folder": str | None}
    known = [option for option in inspect.signature(RemoteReward).parameters if option != "name"]
    found: dict[str, Any] = {}
    for option, value in options.items():
        if option not in known:
            raise UnknownOptionError(str(option), f"the remote reward '{name}'", known)
        found[option] = fitted_option(Texts(), value, hints[option], option, None)
    if "url" not in found:
        raise ValueError(f"the remote reward '{name}' has no 'url'; give that of the service")
    return RemoteReward(name=name, **found)
