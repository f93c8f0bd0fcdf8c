"""Packages that a single reward needs, and that come with an extra of this package."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import first_line


def optional_package(name: str, package: str, extra: str, note: str = "") -> Any:
    """Imports a package for the reward `name`.

    Args:
        name: of the reward.
        package: what is imported.
        extra: that installs it.
        note: what else an installation needs to know.

    Raises:
        ImportError: it cannot be imported, for whatever reason.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"Reward '{name}' needs the package '{package}', which cannot be imported ({first_line(error)}); "
            f"install it with `pip install diamond-diffusers[{extra}]`{note}."
        ) from error
