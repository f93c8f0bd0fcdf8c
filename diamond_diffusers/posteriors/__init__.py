"""Posterior samplers, which look ahead to clean samples: one file each, called as its entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.registry import Registry

if TYPE_CHECKING:
    from .base import PosteriorSampler

POSTERIORS: Registry[type[PosteriorSampler]] = Registry(
    "posterior", "posteriors", __name__, base="diamond_diffusers.posteriors.base:PosteriorSampler"
)

register_posterior = POSTERIORS.register
"""The decorator that makes a class of your own known by a name, such as `@register_posterior("mine")`."""
