"""Finds the family of a stock pipeline by its class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import diffusers

from .base import Family

_FAMILIES: dict[str, type[Family]] = {}


def register_family(*pipeline_classes: str) -> Callable[[type[Family]], type[Family]]:
    """Makes a family known for stock pipelines of the named classes."""

    def register(family: type[Family]) -> type[Family]:
        for name in pipeline_classes:
            _FAMILIES[name] = family
        return family

    return register


def supported_pipelines() -> dict[str, type[Family]]:
    """The stock pipeline classes that have a family."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    return dict(sorted(_FAMILIES.items()))


def check_supported(pipeline_class: str) -> type[Family]:
    """The family class of a stock pipeline class.

    Raises:
        TypeError: none is registered for exactly this class; a subclass may sample differently.
    """
    supported = supported_pipelines()
    if pipeline_class not in supported:
        raise TypeError(
            f"pipeline is a {pipeline_class}, for which there is no family; supported are {', '.join(supported)}. "
            "docs/adding_a_family.md shows how to add one"
        )
    return supported[pipeline_class]


def family_of(pipeline: Any) -> Family:
    """The family of a loaded stock pipeline.

    Raises:
        TypeError: as of `check_supported`; also where a class of another origin has the name of one of diffusers.
    """
    kind = type(pipeline)
    family = check_supported(kind.__name__)
    if kind is not getattr(diffusers, kind.__name__, kind):
        raise TypeError(
            f"pipeline is a {kind.__module__}.{kind.__name__}, which shares its name, but not its code, with that of "
            f"diffusers; load the model with diffusers.{kind.__name__}, or give the class a name and a family of "
            "its own"
        )
    return family(pipeline)
