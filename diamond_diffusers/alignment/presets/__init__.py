"""Published methods by the names that people know, each a cell of the grid with its authors' settings: one file each.

A preset takes the model, so far as its settings depend on it (None for those of no model in particular), and options of
the method that it returns, which replace its own: `fk_steering(num_particles=8)`.

Settings that a call has of its own are not part of a method: where authors give a `reward_scale` and a number of steps,
the docstring says which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...core.registry import Registry

if TYPE_CHECKING:
    from ..base import Method

PRESETS: Registry[Callable[..., Method]] = Registry("preset", "presets", __name__)

register_preset = PRESETS.register
"""The decorator that makes a function of your own known by a name, such as `@register_preset("mine")`."""
