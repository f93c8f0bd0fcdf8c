"""Whether a reward can be used on this machine as it is."""

from __future__ import annotations

import importlib

from huggingface_hub import try_to_load_from_cache

from .errors import first_line
from .registry import Registered, required_arguments


def availability(registered: Registered) -> str:
    """What stands between a registered reward and its first score, or "yes"; loads no weights.

    Args:
        registered: as `registered_reward` returns it.
    """
    for package in getattr(registered, "requires", ()):
        try:
            importlib.import_module(package)
        except Exception as error:
            return f"no: package {package} does not import ({first_line(error)})"
    if required := required_arguments(registered):
        return f"in Python, with {', '.join(required)}"
    absent = [repo for repo, file in getattr(registered, "hub_files", ()) if not _is_cached(repo, file)]
    return f"after download of {', '.join(absent)}" if absent else "yes"


def _is_cached(repository: str, file: str) -> bool:
    return isinstance(try_to_load_from_cache(repository, file), str)
