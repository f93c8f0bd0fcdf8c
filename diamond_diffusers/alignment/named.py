"""Methods by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from ..core.model import Model
from ..core.serial import NAME, from_dict, with_options
from ..core.wording import shown
from . import AUTO
from .base import Method
from .methods import METHODS
from .presets import PRESETS


def is_auto(alignment: object) -> bool:
    """Whether a call is to choose its method by itself."""
    return isinstance(alignment, str) and alignment == AUTO


def as_method(alignment: Method | str | Mapping[str, Any], model: Model | None = None) -> Method:
    """A method as it is, or the one that a name or a serial form stands for.

    Args:
        alignment: a method; its name, or the name of a published method, for its defaults; or a mapping with the name
            and options, such as `{"name": "smc", "num_particles": 8, "posterior": {"name": "glass"}}`.
        model: on which the settings of a published method may depend.

    Raises:
        TypeError: it is none of these, or a published method's function returns none.
        ValueError: the name or an option is unknown, the name is that of two, or the method refuses an option.
    """
    if isinstance(alignment, Method):
        check_is_dataclass(alignment)
        return alignment
    form = {NAME: alignment} if isinstance(alignment, str) else alignment
    if not isinstance(form, Mapping) or not isinstance(form.get(NAME), str):
        if isinstance(alignment, type):
            raise TypeError(f"alignment is {shown(alignment)}; give an instance, {alignment.__name__}()")
        raise TypeError(
            f"alignment is {shown(alignment)}; give a method, such as SMC(num_particles=4), or its name, or a mapping "
            "with its name and options"
        )
    if form[NAME] == AUTO:
        raise ValueError(
            "alignment is 'auto', which stands for a method that a call chooses by its model and reward; give it to a "
            "call as it is, without options, or name a method"
        )
    name, options = form[NAME], {option: value for option, value in form.items() if option != NAME}
    if name in METHODS and name in PRESETS:
        raise ValueError(f"alignment is {name!r}, the name of both a method and a preset; rename the one that is yours")
    # A dotted name is that of a class, which is refused with the remedy.
    if name in METHODS or "." in name:
        return from_dict(METHODS, form, "alignment")
    if name in PRESETS:
        preset = PRESETS.get(name)
        try:
            inspect.signature(preset).bind(model)
        except TypeError:
            raise TypeError(
                f"the preset {name!r} takes {inspect.signature(preset)}; let it take the model, as in "
                f"{name}(model=None, **options)"
            ) from None
        method = preset(model)
        if not isinstance(method, Method):
            raise TypeError(f"the preset {name!r} returned {method!r}; let it return a method, such as SMC()")
        return with_options(method, options)
    names = ", ".join((*METHODS.names(), *PRESETS.names()))
    raise ValueError(
        f"alignment is {shown(name)}; choose one of {names}, give an object, or import the file of yours that "
        "registers it (--import on the command line)"
    )


def check_is_dataclass(method: Method) -> None:
    """Raises a `TypeError` for a method whose class, or an annotation of it, is not that of a dataclass."""
    kind = type(method)
    known = {field.name for field in dataclasses.fields(method)} if dataclasses.is_dataclass(method) else set()
    own = [] if "__dataclass_fields__" in vars(kind) else [name for name in inspect.get_annotations(kind)]
    own = [name for name in own if name not in known and not any(hasattr(base, name) for base in kind.__mro__[1:])]
    if not dataclasses.is_dataclass(method) or own:
        raise TypeError(f"alignment is {shown(method)}, whose class is no dataclass; decorate it with @dataclass")
