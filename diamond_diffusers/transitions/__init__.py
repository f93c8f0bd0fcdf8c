"""Transitions, which move particles from one noise level to the next: one file each, named like its registered name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import Registry

if TYPE_CHECKING:
    from .base import Transition

TRANSITIONS: Registry[type[Transition]] = Registry(
    "transition",
    "transitions",
    __name__,
    helpers=("base", "inner_flow", "sampled_model"),
    base="diamond_diffusers.transitions.base:Transition",
)

register_transition = TRANSITIONS.register
"""The decorator that makes a class of your own known by a name, such as `@register_transition("mine")`."""
