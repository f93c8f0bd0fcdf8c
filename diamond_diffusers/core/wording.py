"""How values and names stand in errors."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

_SHOWN = reprlib.Repr()
_SHOWN.maxother = _SHOWN.maxstring = 80


def did_you_mean(name: str, names: Sequence[str]) -> str:
    """The part of an error that names the likeliest of several for one that is none of them; empty without one."""
    near = get_close_matches(name, names, n=1)
    return f", did you mean {near[0]!r}" if near else ""


def shown(value: Any) -> str:
    """A value in an error: of a class its name, of arrays and tensors their shape, and of all else its beginning."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if (shape := getattr(value, "shape", ())) != () and hasattr(value, "dtype"):
        return f"a {type(value).__name__} of shape {list(shape)}"
    return " ".join(_SHOWN.repr(value).split())
