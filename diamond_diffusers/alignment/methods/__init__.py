"""Alignment methods: one file each, called as its entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.registry import Registry

if TYPE_CHECKING:
    from ..base import Method

METHODS: Registry[type[Method]] = Registry(
    "alignment", "methods", __name__, helpers=(), base="diamond_diffusers.alignment.base:Method"
)

register_method = METHODS.register
"""The decorator that makes a class of your own known by a name, such as `@register_method("mine")`."""
