"""Methods by name."""

from __future__ import annotations

from ..core.model import Model
from .base import Method
from .methods import METHODS
from .presets import PRESETS


def as_method(alignment: Method | str, model: Model | None = None) -> Method:
    """A method as it is, or the one that a name stands for with its defaults.

    Args:
        alignment: a method, its name, or the name of a published method.
        model: on which the settings of a published method may depend.

    Raises:
        TypeError: it is neither.
        ValueError: the name is unknown.
    """
    if isinstance(alignment, Method):
        return alignment
    if not isinstance(alignment, str):
        raise TypeError(f"alignment is {alignment!r}; give a method, such as SMC(num_particles=4), or its name")
    if alignment in METHODS:
        return METHODS.get(alignment)()
    if alignment in PRESETS:
        return PRESETS.get(alignment)(model)
    names = ", ".join((*METHODS.names(), *PRESETS.names()))
    raise ValueError(f"alignment is {alignment!r}; choose one of {names} or give an object")
