"""The call defaults that a caller gives a model, checked as the arguments of a call are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..alignment.methods import METHODS
from ..alignment.named import as_method, is_auto
from ..alignment.presets import PRESETS
from ..core.serial import NAME
from ..core.wording import did_you_mean, shown
from .argument_types import call_parameters, fitted_arguments
from .run_options import RunOptions

OWN_DEFAULTS = ("reward", "alignment", "reward_scale")
"""Options of a call besides the stock arguments for which a model may have a default."""


def checked_defaults(kind: Any, defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    """Checks call defaults of a model, and returns them.

    Args:
        kind: class of the stock pipeline.
        defaults: by the names of the arguments; None for none.

    Raises:
        TypeError: they are no mapping, or one is of a wrong type.
        ValueError: there is no such argument, or one is out of range.
    """
    if defaults is None:
        return {}
    if not isinstance(defaults, Mapping):
        raise TypeError(f"defaults is {shown(defaults)}; give a mapping, such as {{'num_inference_steps': 20}}")
    names = [*OWN_DEFAULTS, *call_parameters(kind)]
    for name in defaults:
        if name not in names:
            hint = did_you_mean(str(name), names)
            raise ValueError(f"defaults holds {shown(name)}{hint}; choose from {', '.join(names)}")
    options = RunOptions(**{name: defaults[name] for name in OWN_DEFAULTS if name in defaults})
    form = options.alignment
    called = form.get(NAME) if isinstance(form, Mapping) else form
    # Presets may ask for the model, as "auto" does; methods are checked at once.
    asks = is_auto(form) or (isinstance(called, str) and called in PRESETS and called not in METHODS)
    if form is not None and not asks:
        as_method(form)
    fitted = fitted_arguments(kind, {name: value for name, value in defaults.items() if name not in OWN_DEFAULTS})
    return {**defaults, **fitted}
