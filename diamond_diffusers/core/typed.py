"""Dataclasses whose constructors take what their annotations ask for, and refuse all else in one sentence."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from .conversions import Values, field_hints
from .serial import fitted_option

_VALUES = Values()


def _after_types(check: Callable[..., None]) -> Callable[..., None]:
    """A `__post_init__` that fits the fields first; only the one that the class itself calls does."""

    @functools.wraps(check)
    def post_init(self: Any, *initial: Any) -> None:
        if type(self).__post_init__ is post_init:
            fit_fields(self)
        check(self, *initial)

    return post_init


class Typed:
    """A base for dataclasses, such as methods and their parts, whose constructors check types before anything else.

    A field takes what its annotation asks for. A field of a part, such as a posterior sampler, takes its registered
    name and its serial form too. `__post_init__` of a subclass runs afterwards, and finds the fields as they are
    annotated.

    Example:
        >>> from diamond_diffusers import SMC
        >>> SMC(posterior="glass").posterior.num_inner_steps
        4
        >>> SMC(num_particles="4")
        Traceback (most recent call last):
        diamond_diffusers.core.conversions.WrongTypeError: num_particles is '4'; give a whole number
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__post_init__" in vars(cls):
            cls.__post_init__ = _after_types(vars(cls)["__post_init__"])  # type: ignore[method-assign]

    @_after_types
    def __post_init__(self) -> None:
        """Checks the fields beyond their types; those of a dataclass call that of `super()`."""


def fit_fields(record: Any) -> None:
    """Replaces the fields of a dataclass object by what their annotations make of them.

    Raises:
        WrongTypeError: a field is of another type.
        ValueError: the name or an option of a part is unknown.
    """
    if not dataclasses.is_dataclass(record):
        return
    cls: Any = type(record)
    hints = field_hints(cls)
    for field in dataclasses.fields(record):
        given = getattr(record, field.name, None)
        # A default is taken as it is, whatever its annotation says.
        if not field.init or given is field.default:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        if field.default_factory is not dataclasses.MISSING and isinstance(given, dict):
            default = field.default_factory()
        fitted = fitted_option(_VALUES, given, hints.get(field.name, Any), field.name, default)
        if fitted is not given:
            object.__setattr__(record, field.name, fitted)
